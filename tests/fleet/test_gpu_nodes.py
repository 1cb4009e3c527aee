"""Where workers are placed on machines with and without GPUs, of which Ray is told that they are there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import hurry
from tests.support.ray_nodes import WORKER, RayNodes
from tests.support.running import assert_whole, start_with, text_rows, wait_until, write_rows, write_spec


@pytest.fixture(scope="module")
def head() -> Iterator[RayNodes]:
    """A cluster whose head has two CPUs and no GPU."""
    with RayNodes(head_cpus=2) as cluster:
        yield cluster


def spec_of(folder: Path, num_rows: int, num_gpus: float | str) -> Path:
    return write_spec(
        folder / "job.yaml",
        write_rows(folder / "rows.parquet", text_rows(num_rows)),
        folder / "out",
        batching={"shard_rows": 2},
        workers={"num_gpus": num_gpus},
    )


def test_every_gpu_that_joins_gets_its_workers_and_the_head_keeps_none(
    head: RayNodes, tmp_path: Path
) -> None:
    """First there is the head alone; then a machine with two GPUs joins."""
    spec = spec_of(tmp_path, 100, num_gpus="auto")

    with start_with("slow_until_told", spec, **head.env) as run:
        run.wait_until(lambda: len(head.workers()) == 2)
        with_gpus = head.add(num_cpus=4, num_gpus=2)
        run.wait_until(lambda: len(with_gpus.pids(WORKER)) == 2)
        wait_until(lambda: set(head.workers()) == set(with_gpus.pids(WORKER)))
        hurry(tmp_path / "rows.parquet")
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert_whole(tmp_path / "out", text_rows(100))


def test_workers_fill_the_gpus_of_the_one_machine_that_has_some(head: RayNodes, tmp_path: Path) -> None:
    """Two on each of the GPUs of the test before; the machine without a GPU has none."""
    spec = spec_of(tmp_path, 100, num_gpus=0.5)
    with_gpus = head.started[1]

    with start_with("slow_until_told", spec, **head.env) as run:
        run.wait_until(lambda: "4 workers with 0.5 GPUs" in run.out())
        wait_until(lambda: len(with_gpus.pids(WORKER)) == 4)
        assert set(head.workers()) == set(with_gpus.pids(WORKER))
        hurry(tmp_path / "rows.parquet")
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert_whole(tmp_path / "out", text_rows(100))


@pytest.fixture(scope="module")
def growing() -> Iterator[RayNodes]:
    """A cluster whose autoscaler can start a machine with two GPUs."""
    types = {"with_gpus": {"resources": {"CPU": 4, "GPU": 2}, "max_workers": 1}}
    with RayNodes(head_cpus=2, node_types=types) as cluster:
        yield cluster


def test_machines_are_started_for_the_shards_and_none_is_used_on_the_head(
    growing: RayNodes, tmp_path: Path
) -> None:
    """Ray's own autoscaler starts them."""
    spec = spec_of(tmp_path, 100, num_gpus="auto")
    size = "2 workers with 1 GPU and 2 CPUs each, 2 of them on machines that the cluster has to start"

    with start_with("slow_until_told", spec, **growing.env) as run:
        run.wait_until(lambda: size in run.out())
        run.wait_until(lambda: len(growing.workers()) == 2)
        assert {node_type_of(pid) for pid in growing.workers()} == {"with_gpus"}
        hurry(tmp_path / "rows.parquet")
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert_whole(tmp_path / "out", text_rows(100))


def node_type_of(pid: int) -> str:
    """The node type of the machine on which this worker is."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    (name,) = [value for value in variables if value.startswith("RAY_NODE_TYPE_NAME=")]
    return name.partition("=")[2]
