"""Jobs that are stopped, killed and run again: nothing half-written, no row lost, none doubled.

Real drivers, real Ray, real workers; the engine alone is a quick one, so that a job is up in seconds.
"""

import io
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from tests.support.engines import FATAL_WIDTH
from tests.support.ray_nodes import RayNodes
from tests.support.running import (
    Record,
    assert_whole,
    darkroom_here,
    kill,
    output_rows,
    parts,
    run_with,
    start_with,
    text_rows,
    write_rows,
    write_spec,
)

NO_RAY = {"RAY_ADDRESS": "127.0.0.1:1"}
"""Nobody listens there: a command that succeeds with it has not asked for Ray."""
STOPPED_WITHIN_S = 60
"""It takes 2 s; the rest is for machines that are busy."""


def job(folder: Path, rows: Sequence[Record], **sections: Any) -> Path:
    """A spec of shards of four rows, with its input beside it and its output in `out`."""
    written = write_rows(folder / "rows.parquet", rows)
    defaults = {"batching": {"shard_rows": 4}}
    return write_spec(folder / "job.yaml", written, folder / "out", **defaults | sections)


def test_ctrl_c_ends_a_job_within_seconds_and_running_it_again_makes_the_rest(
    nodes: RayNodes, tmp_path: Path
) -> None:
    """Exit code 130, whole parts only, no process left; a second and a third Ctrl-C change nothing."""
    rows = text_rows(160)
    spec = job(tmp_path, rows)
    output = tmp_path / "out"

    with start_with("slow", spec) as run:
        run.wait_until(lambda: len(parts(output)) > 2)
        for _ in range(3):
            run.press_ctrl_c()
        stopped = run.wait(STOPPED_WITHIN_S)
        run.wait_until_gone(STOPPED_WITHIN_S)
    made = {part: part.read_bytes() for part in parts(output)}

    assert stopped.code == 130
    assert stopped.err == "darkroom: interrupted; saved parts stay, run again to resume\n"
    assert 2 < len(made) < 40
    assert all(pq.read_table(part).num_rows == 4 for part in made)
    told = re.search(
        r"^interrupted: at least (\d+) of 160 rows saved, at most \d+ images? of", stopped.out, re.MULTILINE
    )
    assert told
    assert 0 <= 4 * len(made) - int(told[1]) <= 16
    partial = darkroom_here("verify", output)
    assert partial.code == 1
    assert f"does not keep the row contract ({40 - len(made)} faults)" in partial.err
    assert "no driver is running; run the job again to resume" in darkroom_here("status", output).out

    resumed = run_with("quick", spec, **nodes.env)

    assert resumed.code == 0
    assert f"{len(made)} of 40 parts already saved, {40 - len(made)} left to generate" in resumed.out
    assert {part: part.read_bytes() for part in made} == made
    assert_whole(output, rows)


def test_sigterm_while_ray_starts_ends_a_job_at_once(tmp_path: Path) -> None:
    """`ray.init` brings a SIGTERM handler of its own, which must not show."""
    spec = job(tmp_path, text_rows(8))

    with start_with("slow", spec) as run:
        run.wait_until(lambda: run.pids("gcs_server"))
        run.signal(signal.SIGTERM)
        stopped = run.wait(STOPPED_WITHIN_S)
        run.wait_until_gone()

    assert stopped.code == 130
    assert stopped.err.endswith("darkroom: interrupted; saved parts stay, run again to resume\n")


def test_sigterm_ends_a_job_as_ctrl_c_does(nodes: RayNodes, tmp_path: Path) -> None:
    """What `ray job stop` and Kubernetes send: the lease is given back, so that another host can go on."""
    spec = job(tmp_path, text_rows(160), workers={"num": 1})
    output = tmp_path / "out"

    with start_with("slow", spec, **nodes.env) as run:
        run.wait_until(lambda: parts(output))
        run.signal(signal.SIGTERM)
        stopped = run.wait(STOPPED_WITHIN_S)
        run.wait_until_gone(STOPPED_WITHIN_S)

    assert stopped.code == 130
    assert "Traceback" not in stopped.err
    assert '"ended": true' in (output / "_darkroom" / "driver.json").read_text()


def test_workers_killed_at_random_moments_cost_no_row(nodes: RayNodes, tmp_path: Path) -> None:
    """SIGKILL, as the kernel sends it when memory runs out: fresh workers make what the dead ones held."""
    rows, moments = text_rows(80), random.Random(20)
    spec = job(tmp_path, rows, errors={"max_attempts": 20})
    output = tmp_path / "out"

    with start_with("slow", spec, **nodes.env) as run:
        run.wait_until(lambda: parts(output))
        for _ in range(3):
            pids = run.wait_until(nodes.workers)
            time.sleep(moments.uniform(0, 1.0))  # the moment itself is what varies
            kill(moments.choice(pids))
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert "worker=worker-" in finished.err
    assert_whole(output, rows)


def test_jobs_killed_at_random_moments_lose_and_double_no_row(nodes: RayNodes, tmp_path: Path) -> None:
    """The driver alone, whose workers live on for a while beside the next run's; then all at once."""
    rows, moments = text_rows(100), random.Random(30)
    spec = job(tmp_path, rows)
    output = tmp_path / "out"

    for victims in ("driver", "all"):
        before = len(parts(output))
        with start_with("slow", spec, **nodes.env) as run:
            run.wait_until(lambda before=before: len(parts(output)) > before + 1)
            time.sleep(moments.uniform(0, 0.8))  # the moment itself is what varies
            for worker in nodes.workers() if victims == "all" else []:
                kill(worker)
    finished = run_with("slow", spec, **nodes.env)

    assert finished.code == 0, finished.err
    assert_whole(output, rows)


def test_an_image_that_kills_its_worker_costs_its_own_row_only(nodes: RayNodes, tmp_path: Path) -> None:
    """The row is recorded as failed; finding it takes three deaths and the logarithm of the shard's size."""
    rows = text_rows(24)
    rows[11] |= {"task": "img2img", "image": fatal_image()}
    spec = job(tmp_path, rows, batching={"shard_rows": 16}, errors={"max_rate": 0.5}, workers={"num": 1})
    output = tmp_path / "out"

    finished = run_with("quick", spec, **nodes.env)
    again = darkroom_here("run", spec, **NO_RAY)

    assert finished.code == 0, finished.err
    assert finished.err.count(" died: ") <= 3 + 4
    assert re.search(r"^generated 23 images in .* total: 23 rows ok", finished.out, re.MULTILINE)
    assert_whole(output, rows)
    failed = [row for row in output_rows(output) if row["status"] != "ok"]
    assert [(row["row_id"], row["error_code"], row["image"]) for row in failed] == [
        ("row-0011", "worker_crash", None)
    ]
    assert "takes its worker process down" in failed[0]["error_message"]
    assert "nothing to do; total: 23 rows ok, 0 filtered, 1 failed" in again.out


def test_a_worker_that_is_stopped_is_replaced_and_costs_no_row(nodes: RayNodes, tmp_path: Path) -> None:
    """It answers nothing at all, which is no progress either. Going on later it finds its shards made."""
    rows = text_rows(80)
    errors = {"storage_deadline_s": 1, "stall_timeout_s": 3}
    spec = job(tmp_path, rows, errors=errors)
    output = tmp_path / "out"

    with start_with("slow", spec, **nodes.env) as run:
        run.wait_until(lambda: parts(output))
        stopped = run.wait_until(nodes.workers)[0]
        os.kill(stopped, signal.SIGSTOP)
        run.wait_until(lambda: "no progress" in run.err())
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert finished.err.count("died: it made no progress for 3 s") == 1
    assert_whole(output, rows)


def test_a_hopeless_job_stops_in_the_midst_of_its_first_shard(nodes: RayNodes, tmp_path: Path) -> None:
    """With exit code 3 and the reason, long before all its rows have failed."""
    spec = job(tmp_path, text_rows(400), batching={"shard_rows": 400}, workers={"num": 1})

    stopped = run_with("hopeless", spec, **nodes.env)

    assert (stopped.code, parts(tmp_path / "out")) == (3, [])
    assert "rows that were tried all failed" in stopped.err
    assert "nonfinite_image, such as: all values are NaN" in stopped.err
    assert "Traceback" not in stopped.err


def fatal_image() -> Record:
    """Its header is in order."""
    file = io.BytesIO()
    Image.new("RGB", (FATAL_WIDTH, 16)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def test_a_worker_that_does_not_see_the_output_stops_the_job(nodes: RayNodes, tmp_path: Path) -> None:
    """A local output.path on a cluster of several machines: nothing is generated into folders apart."""
    spec = job(tmp_path, text_rows(8), workers={"num": 1})
    record = tmp_path / "out" / "_darkroom" / "job.json"

    with start_with("quick", spec, **nodes.env) as run:
        run.wait_until(record.exists)
        record.unlink()
        stopped = run.wait()

    assert stopped.code == 2
    assert f"{record}, which the driver has written, does not exist for a worker on " in stopped.err
    assert parts(tmp_path / "out") == []
