"""How many workers of which size a job gets, on clusters of every kind that the arithmetic can meet."""

from typing import Any

import pytest

from jobs.fleet.layout import Layout, lay_out, num_fitting, resources_in_use
from schemas.errors import SpecError
from schemas.spec.job_spec import WorkersSpec
from tests.support.simulation.fake_ray import FakeRay, installed
from tests.support.simulation.simulated_time import Clock

MANY = 1000
"""More shards than any of these clusters has workers."""


def machine(num_gpus: int, num_cpus: int) -> dict[str, float]:
    return {"GPU": num_gpus, "CPU": num_cpus}


def cluster_of(*machines: dict[str, float]) -> FakeRay:
    ray = FakeRay(Clock(), lambda actor: None)
    ray.machines = {f"machine-{i}": machine for i, machine in enumerate(machines)}
    return ray


def layout(*machines: dict[str, float], num_shards: int = MANY, **workers: Any) -> Layout:
    with installed(cluster_of(*machines)):
        return lay_out(WorkersSpec(**workers), num_shards)


@pytest.fixture(autouse=True)
def _own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster is another one, which may still grow."""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")


@pytest.mark.parametrize(
    ("machines", "workers", "num", "num_gpus", "num_cpus"),
    [
        # Each GPU gets a worker, which has its share of the CPUs, at most 4.
        ([machine(4, 32)], {}, 4, 1, 4),
        ([machine(1, 2)], {}, 1, 1, 2),
        ([machine(2, 7)], {}, 2, 1, 3),
        # On the machine with the fewest CPUs for a GPU too; machines without GPUs do not count.
        ([machine(1, 8), machine(2, 4)], {}, 3, 1, 2),
        ([machine(2, 4), machine(0, 12)], {}, 2, 1, 2),
        ([machine(2, 4), machine(0, 12)], {"num_gpus": 0.5}, 4, 0.5, 1),
        ([machine(8, 4)], {}, 4, 1, 1),
        ([machine(8, 16)] * 10 + [machine(0, 640)], {}, 80, 1, 2),
        # Several workers share a GPU.
        ([machine(2, 16)], {"num_gpus": 0.5}, 4, 0.5, 4),
        ([machine(1, 6)], {"num_gpus": 0.3}, 3, 0.3, 2),
        ([machine(1, 40)], {"num_gpus": 0.1}, 10, 0.1, 4),
        ([machine(3, 64)], {"num_gpus": 0.7}, 3, 0.7, 4),
        ([machine(1, 64)], {"num_gpus": 0.0001}, 64, 0.0001, 1),
        # Where no GPU is wanted, or none is there, each CPU gets a worker.
        ([machine(0, 8)], {}, 8, 0, 1),
        ([machine(2, 8)], {"num_gpus": 0}, 8, 0, 1),
        ([machine(0, 8)], {"num_cpus": 3}, 2, 0, 3),
        # What the spec states comes first.
        ([machine(4, 32)], {"num": 3}, 3, 1, 4),
        ([machine(2, 32)], {"num": 5}, 5, 1, 4),
        ([machine(4, 32)], {"num_cpus": 8}, 4, 1, 8),
    ],
)
def test_the_layout_follows_from_the_machines_and_the_spec(
    machines: list[dict[str, float]], workers: dict[str, Any], num: int, num_gpus: float, num_cpus: int
) -> None:
    """Whatever the spec leaves open is what uses all GPUs, or all CPUs."""
    assert layout(*machines, **workers) == Layout(num=num, num_gpus=num_gpus, num_cpus=num_cpus)


def test_a_job_gets_no_more_workers_than_it_has_shards() -> None:
    """Each more would load its model for nothing."""
    limited = layout(machine(8, 64), num_shards=3)

    assert limited.num == layout(machine(8, 64), num_shards=3, num=5).num == 3
    assert limited.limited_by_shards
    assert not layout(machine(8, 64), num_shards=8).limited_by_shards


@pytest.mark.parametrize(
    ("size", "short_of"),
    [
        (Layout(num=1, num_gpus=0, num_cpus=3), "4 of 6 CPUs in use"),
        (Layout(num=1, num_gpus=1, num_cpus=3), "2 of 2 GPUs in use, 4 of 6 CPUs in use"),
        (Layout(num=1, num_gpus=1, num_cpus=1), "2 of 2 GPUs in use"),
        (Layout(num=1, num_gpus=0, num_cpus=2), ""),
    ],
)
def test_a_worker_without_room_is_told_what_is_in_use(
    size: Layout, short_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By others, or by workers of this job."""
    ray = cluster_of(machine(1, 4), machine(1, 2))
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})

    with installed(ray):
        assert resources_in_use(size) == short_of


@pytest.mark.usefixtures("joined")
def test_a_cluster_without_room_yet_gets_one_worker_that_waits(caplog: pytest.LogCaptureFixture) -> None:
    """Its autoscaler adds machines for what waits. The log says what is missing."""
    assert layout(machine(0, 1), num_gpus=1) == Layout(num=1, num_gpus=1, num_cpus=1)
    assert layout(machine(1, 2), machine(1, 4), num_cpus=5).num == 1
    assert layout(machine(0, 2), num_cpus=4) == Layout(num=1, num_gpus=0, num_cpus=4)
    assert [message.partition(" for one worker")[0] for message in caplog.messages] == [
        "waiting for a machine with 1 GPU and 1 CPU",
        "waiting for a machine with 1 GPU and 5 CPUs",
        "waiting for a machine with 0 GPUs and 4 CPUs",
    ]


@pytest.mark.usefixtures("joined")
def test_where_one_machine_has_room_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The head has no GPU, and needs none."""
    assert layout(machine(0, 4), machine(2, 8)).num == 2
    assert not caplog.messages


@pytest.mark.usefixtures("joined")
def test_machines_that_are_gone_have_no_room(caplog: pytest.LogCaptureFixture) -> None:
    """Ray goes on to name them."""
    ray = cluster_of(machine(0, 2))
    ray.dead_machines = [machine(0, 8)]

    with installed(ray):
        lay_out(WorkersSpec(num_cpus=4), MANY)

    assert caplog.messages[0].startswith("waiting for a machine with 0 GPUs and 4 CPUs")


@pytest.mark.parametrize(
    ("only", "workers", "message"),
    [
        (machine(0, 4), {"num_gpus": 1}, "this machine has no GPU that Ray can see"),
        (machine(1, 4), {"num_cpus": 5}, "a worker needs 1 GPU and 5 CPUs, and this machine has 1 GPU and"),
        (machine(0, 2), {"num_cpus": 3}, "a worker needs 0 GPUs and 3 CPUs, and this machine has 0 GPUs and"),
    ],
)
def test_a_machine_alone_that_is_too_small_is_an_error(
    only: dict[str, float], workers: dict[str, Any], message: str
) -> None:
    """No other will join, and Ray would wait for it without end."""
    with pytest.raises(SpecError, match=message):
        layout(only, **workers)


@pytest.mark.parametrize(
    ("size", "num"),
    [
        (Layout(num=1, num_gpus=1, num_cpus=4), 3),
        (Layout(num=1, num_gpus=0.5, num_cpus=1), 6),
        (Layout(num=1, num_gpus=0.5, num_cpus=4), 4),
        (Layout(num=1, num_gpus=0, num_cpus=4), 4),
        (Layout(num=1, num_gpus=0, num_cpus=3), 5),
    ],
)
def test_as_many_workers_fit_as_both_the_gpus_and_the_cpus_allow(size: Layout, num: int) -> None:
    """On two machines together."""
    with installed(cluster_of(machine(1, 4), machine(2, 12))):
        assert num_fitting(size) == num


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (Layout(num=1, num_gpus=1, num_cpus=4), "1 worker with 1 GPU and 4 CPUs"),
        (Layout(num=4, num_gpus=0.5, num_cpus=2), "4 workers with 0.5 GPUs and 2 CPUs each"),
        (Layout(num=2, num_gpus=0, num_cpus=1), "2 workers with 1 CPU each"),
        (
            Layout(num=1, num_gpus=0, num_cpus=1, limited_by_shards=True),
            "1 worker with 1 CPU: one for each part that is left; "
            "a smaller batching.shard_rows makes more parts",
        ),
    ],
)
def test_a_run_says_what_it_starts(shown: Layout, text: str) -> None:
    """GPUs are named only where workers have some."""
    assert shown.describe() == text
