"""How many workers of which size a job gets, on clusters of every kind that the arithmetic can meet."""

from pathlib import Path
from typing import Any

import pytest
from ray.core.generated import autoscaler_pb2

from jobs.fleet.layout import Layout, lay_out, num_workers, resources_in_use
from jobs.fleet.machines import find_machines
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


def test_a_worker_that_waits_for_a_gpu_is_told_that_there_is_none_yet() -> None:
    """Where the cluster still has to start a machine with one."""
    with installed(cluster_of(machine(0, 4))):
        assert resources_in_use(Layout(num=1, num_gpus=1, num_cpus=1)) == "no GPU yet"


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
        assert num_workers(WorkersSpec(), size, find_machines(), MANY) == num


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
        (
            Layout(num=8, num_gpus=1, num_cpus=4, num_to_come=6, limited_by_shards=True),
            "8 workers with 1 GPU and 4 CPUs each, 6 of them on machines that the cluster has to start: "
            "one for each part that is left; a smaller batching.shard_rows makes more parts",
        ),
    ],
)
def test_a_run_says_what_it_starts(shown: Layout, text: str) -> None:
    """GPUs are named only where workers have some."""
    assert shown.describe() == text


HEAD_TYPE = "head"
CONFIG = """
max_workers: 8
head_node_type: head
available_node_types:
  head: {resources: {CPU: 64, GPU: 1}, max_workers: 0}
  small: {resources: {CPU: 8, GPU: 1}, max_workers: 6}
  large: {resources: {CPU: 192, GPU: 8}, max_workers: 4}
  dearest: {resources: {CPU: 1, GPU: 16}, max_workers: 0}
"""
"""A cluster's configuration as `ray up` puts it on the head."""


def cluster_with_autoscaler(*machines: dict[str, float], head: dict[str, float]) -> FakeRay:
    ray = cluster_of(*machines)
    ray.machines["head"] = head | {"node:__internal_head__": 1.0}
    ray.labels = {name: {"ray.io/node-group": "worker"} for name in ray.machines}
    ray.labels["head"] = {"ray.io/node-group": HEAD_TYPE}
    return ray


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder on the head."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("joined")
class TestAutoscaler:
    """A Ray cluster that starts machines when workers wait for them."""

    @pytest.mark.parametrize(
        ("workers", "expected"),
        [
            # Four large machines with eight GPUs each and four small ones, eight machines in all.
            ({}, Layout(num=36, num_gpus=1, num_cpus=4, num_to_come=34, head="head")),
            ({"num_gpus": 0.5}, Layout(num=72, num_gpus=0.5, num_cpus=4, num_to_come=68, head="head")),
            ({"num": 3}, Layout(num=3, num_gpus=1, num_cpus=4, num_to_come=1, head="head")),
            ({"num_gpus": 0}, Layout(num=800, num_gpus=0, num_cpus=1, num_to_come=784, head="head")),
        ],
    )
    def test_workers_are_asked_for_as_the_configuration_on_the_head_allows(
        self, home: Path, workers: dict[str, Any], expected: Layout
    ) -> None:
        """The head itself gets none, though it has room for some."""
        (home / "ray_bootstrap_config.yaml").write_text(CONFIG)
        ray = cluster_with_autoscaler(machine(1, 8), machine(1, 8), head=machine(1, 64))

        with installed(ray):
            assert lay_out(WorkersSpec(**workers), MANY) == expected

    def test_what_the_autoscaler_has_told_ray_comes_first(self, home: Path) -> None:
        """A type without a bound is asked for step by step, as the unknown."""
        (home / "ray_bootstrap_config.yaml").write_text(CONFIG)
        ray = cluster_with_autoscaler(machine(2, 8), head=machine(0, 4))
        group = autoscaler_pb2.NodeGroupConfig
        head = group(name=HEAD_TYPE, resources={"CPU": 4, "GPU": 1}, max_count=1)
        ray.cluster_config = autoscaler_pb2.ClusterConfig(
            node_group_configs=[head, group(name="two", resources={"CPU": 8, "GPU": 2}, max_count=3)]
        )
        with installed(ray):
            bounded = lay_out(WorkersSpec(), MANY)
        ray.cluster_config.node_group_configs[1].max_count = -1
        with installed(ray):
            unbounded = lay_out(WorkersSpec(), MANY)

        assert (bounded.num, bounded.num_to_come) == (6, 4)
        assert (unbounded.num, unbounded.num_to_come) == (5, 3)

    @pytest.mark.parametrize("config", ["", CONFIG.replace("head_node_type: head", "head_node_type: other")])
    def test_where_nobody_can_know_whether_gpus_will_come_the_key_is_named(
        self, home: Path, config: str
    ) -> None:
        """The file of another cluster says nothing."""
        if config:
            (home / "ray_bootstrap_config.yaml").write_text(config)
        ray = cluster_with_autoscaler(head=machine(0, 4))

        with installed(ray), pytest.raises(SpecError, match=r"use --set workers\.num_gpus=1, or 0"):
            lay_out(WorkersSpec(), MANY)

    @pytest.mark.usefixtures("home")
    def test_the_unknown_is_asked_for_step_by_step(self) -> None:
        """Twice as many workers as find room, and one."""
        with installed(cluster_with_autoscaler(head=machine(0, 4))):
            none_yet = lay_out(WorkersSpec(num_gpus=1), MANY)
        with installed(cluster_with_autoscaler(machine(4, 16), head=machine(0, 4))):
            four = lay_out(WorkersSpec(), MANY)

        assert none_yet == Layout(num=1, num_gpus=1, num_cpus=1, num_to_come=1, head="head")
        assert four == Layout(num=9, num_gpus=1, num_cpus=4, num_to_come=5, head="head")

    def test_a_worker_that_no_machine_to_come_can_hold_is_told(
        self, home: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With what these machines have."""
        (home / "ray_bootstrap_config.yaml").write_text(CONFIG)

        with installed(cluster_with_autoscaler(head=machine(0, 400))):
            lay_out(WorkersSpec(num_gpus=1, num_cpus=300), MANY)

        assert "those in the cluster now and those that it can start have 1 GPU and 8 CPUs, 8 GPUs and" in (
            caplog.text
        )

    @pytest.mark.usefixtures("home")
    def test_a_cluster_that_is_started_here_uses_its_head(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ray labels its machine if the environment has a node type, as in a container of KubeRay."""
        monkeypatch.delenv("RAY_ADDRESS")

        with installed(cluster_with_autoscaler(head=machine(0, 4))):
            assert lay_out(WorkersSpec(), MANY) == Layout(num=4, num_gpus=0, num_cpus=1)
