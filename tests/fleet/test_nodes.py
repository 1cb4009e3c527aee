"""Machines that come and go while a job runs, on Ray nodes that are processes of this machine."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import BROKEN, hurry
from tests.support.ray_nodes import WORKER, RayNodes
from tests.support.running import (
    Record,
    assert_whole,
    parts,
    start_with,
    text_rows,
    write_rows,
    write_spec,
)

DRAINED_WITHIN = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "2"}
"""Ray gives a node that is told to end 30 s, which it takes in full while it has actors."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A cluster whose head has room for one worker, to which the tests of this file add machines."""
    with RayNodes(head_cpus=1) as cluster:
        yield cluster


def job(folder: Path, rows: list[Record], **sections: Any) -> Path:
    """A spec of shards of two rows whose deaths are searched for at once."""
    written = write_rows(folder / "rows.parquet", rows)
    defaults = {"batching": {"shard_rows": 2}, "workers": {"num": "auto"}, "errors": {"max_attempts": 1}}
    return write_spec(folder / "job.yaml", written, folder / "out", **defaults | sections)


def test_a_job_uses_a_machine_that_joins_and_outlives_one_that_is_lost(
    nodes: RayNodes, tmp_path: Path
) -> None:
    """Without notice: all of the machine's processes are gone at once. Its shards are made elsewhere."""
    rows, output = text_rows(150), tmp_path / "out"
    spec = job(tmp_path, rows, errors={"max_attempts": 3})

    with start_with("slow_until_told", spec, **nodes.env) as run:
        run.wait_until(lambda: parts(output))
        lost = nodes.add()
        run.wait_until(lambda: lost.pids(WORKER))
        before = len(parts(output))
        run.wait_until(lambda: len(parts(output)) > before + 2)
        lost.kill_all()
        hurry(tmp_path / "rows.parquet")
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert "workers_added=1: the cluster has room now" in finished.err
    assert_whole(output, rows)


def test_a_machine_that_is_told_to_end_costs_its_shards_nothing(nodes: RayNodes, tmp_path: Path) -> None:
    """SIGTERM to a node's first process, as Kubernetes sends it, and to another's raylet, as systemd does."""
    rows, output = text_rows(150), tmp_path / "out"
    spec = job(tmp_path, rows)
    pod, machine = nodes.add(**DRAINED_WITHIN), nodes.add()

    with start_with("slow_until_told", spec, **nodes.env) as run:
        run.wait_until(lambda: pod.pids(WORKER) and machine.pids(WORKER) and parts(output))
        pod.signal(signal.SIGTERM)
        os.kill(machine.pids("raylet/raylet")[0], signal.SIGTERM)
        run.wait_until(lambda: run.err().count("was taken away: ") >= 2)
        hurry(tmp_path / "rows.parquet")
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert " died: " not in finished.err
    assert "rehearses" not in finished.err
    assert_whole(output, rows)


def test_a_job_whose_workers_fit_on_no_machine_says_what_it_waits_for(
    nodes: RayNodes, tmp_path: Path
) -> None:
    """At once, and begins when such a machine has joined."""
    rows, output = text_rows(8), tmp_path / "out"
    spec = job(tmp_path, rows, workers={"num": 1, "num_cpus": 2})

    with start_with("quick", spec, **nodes.env) as run:
        run.wait_until(lambda: "waiting for a machine with 0 GPUs and 2 CPUs" in run.err())
        joined = nodes.add(num_cpus=2)
        finished = run.wait()
        joined.kill_all()

    assert finished.code == 0, finished.err
    assert "those in the cluster now have 0 GPUs and 1 CPU" in finished.err
    assert_whole(output, rows)


def test_a_worker_that_is_told_to_end_finishes_what_it_is_at(nodes: RayNodes, tmp_path: Path) -> None:
    """Its shard is made, the one that waits behind it goes to another worker, and no death is counted."""
    rows, output = text_rows(150), tmp_path / "out"
    spec = job(tmp_path, rows, workers={"num": 1})

    with start_with("slow_until_told", spec, **nodes.env) as run:
        run.wait_until(lambda: parts(output))
        told = nodes.workers()[0]
        os.kill(told, signal.SIGTERM)
        run.wait_until(lambda: nodes.workers() not in ([], [told]))
        hurry(tmp_path / "rows.parquet")
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert "worker=worker-0 was taken away: its process was told to end (SIGTERM)" in finished.err
    assert " died: " not in finished.err
    assert_whole(output, rows)


@pytest.fixture(scope="module")
def breaks(nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine joins whose workers fail as this file says."""
    file = tmp_path_factory.mktemp("broken") / "how"
    nodes.add(**{BROKEN: str(file)})
    return file


# Last, because the broken machine stays. tests/fleet/test_bad_machine.py has all ways to be broken.
@pytest.mark.parametrize("how", ["loses its device", "dies"])
def test_a_machine_that_is_broken_costs_one_machine(
    nodes: RayNodes, breaks: Path, tmp_path: Path, how: str
) -> None:
    """It is named with its worker or for itself; the other one generates every row."""
    rows = text_rows(100)
    spec = job(tmp_path, rows)
    breaks.write_text(how)
    host = re.escape(socket.gethostname())
    named = (
        rf"machine={host} is left out: 3 shards or starts in a row failed there|"
        rf"worker=worker-\d is out of service: 3 shards or starts in a row failed on {host},"
    )

    with start_with("slow_unless_broken", spec, **nodes.env) as run:
        run.wait_until(lambda: re.search(named, run.err()))
        hurry(tmp_path / "rows.parquet")
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert_whole(tmp_path / "out", rows)
