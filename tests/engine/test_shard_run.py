"""One attempt at a shard: what waits for what, what is counted where, and what is let go at the end."""

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.engine.cohorts import samples_of
from actors.engine.engine import Generated
from actors.engine.samples import Sample
from actors.rows.opened_rows import OpenedRow
from actors.shard_run import MAX_WAITING_BYTES, ShardRun
from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Storage
from actors.storage.output import open_output
from actors.storage.retries import repeat
from actors.storage.stores import Stores
from actors.worker import Worker
from jobs.planning.plan import Plan
from schemas.errors import ReclaimedError, RowError
from schemas.job import ShardReport
from tests.support.engines import GreyEngine, NaNEngine, NoiseEngine
from tests.support.in_process import (
    Record,
    drawn_image,
    image_of,
    job_spec,
    outcomes_by_id,
    plan_for,
    read_output,
    worker_for,
    write_rows,
)
from tests.support.running import text_rows

SIZE = (8, 16)
"""Height and width of the images here: not the same."""


class ScriptedEngine(GreyEngine):
    """Yields what the test makes of each sample, and notes the rows that it is asked for."""

    def __init__(self, generated: Callable[[Sample], Generated]) -> None:
        self._generated = generated
        self.asked: list[list[object]] = []

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield the result for every sample of the rows, in order."""
        self.asked.append([opened.row.row_id for opened in rows])
        yield from map(self._generated, samples_of(rows))


class OnDemand(ThreadPoolExecutor):
    """Runs what is submitted when somebody asks for its result, and notes when; it begins no thread."""

    def __init__(self, events: list[str]) -> None:
        super().__init__(1)
        self._events = events
        self._num_submitted = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future whose result is computed by whoever asks first."""
        number, events = self._num_submitted, self._events
        self._num_submitted += 1

        class Encoding(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                if not self.done():
                    self.set_result(function(*args, **kwargs))
                    events.append(f"encoded {number}")
                return super().result(timeout)

        return Encoding()


class Heavy(np.ndarray[Any, Any]):
    """A small array that passes for a quarter of all that may wait to be encoded."""

    nbytes = MAX_WAITING_BYTES // 4


def drawn(value: int) -> np.ndarray[Any, Any]:
    """An image of one colour."""
    return np.full((*SIZE, 3), value, np.uint8)


def plan_of(folder: Path, rows: list[Record], **changes: Any) -> Plan:
    """The plan of a job over the rows, all in one shard."""
    return plan_for(job_spec(write_rows(folder / "in.parquet", rows), folder / "out", **changes))


def run_with(worker: Worker, plan: Plan, encoders: OnDemand) -> ShardReport:
    """Run the plan's first shard with these encoders in place of the worker's threads."""
    resources = replace(worker._resources, encoders=encoders)
    return ShardRun(next(plan.shards()), resources).run()


def failures(report: ShardReport) -> dict[str, int]:
    """Return the number of failed rows by error code."""
    return {code: failed.num_rows for code, failed in report.failures.items()}


def test_generation_waits_while_too_many_bytes_wait_to_be_encoded(tmp_path: Path) -> None:
    """Images, depth maps and the images of steps count; the oldest is waited for, and no more than it."""
    plan = plan_of(tmp_path, [{"row_id": i, "prompt": "x"} for i in range(5)], routes=KEPT_STEPS)
    events: list[str] = []

    def generated(sample: Sample) -> Generated:
        events.append(f"generated {sample.opened.row.row_id}")
        depth = np.zeros(SIZE, np.uint16).view(Heavy)
        kept = replace(sample, step_images=(drawn(2).view(Heavy),))
        return Generated(sample=kept, pixels=drawn(1).view(Heavy), depth=depth, nsfw=None)

    with worker_for(plan, ScriptedEngine(generated)) as worker:
        report = run_with(worker, plan, OnDemand(events))

    # Each has three quarters of what may wait: with the second there are six.
    assert events == [
        *("generated 0", "generated 1", "encoded 0"),
        *("generated 2", "encoded 1"),
        *("generated 3", "encoded 2"),
        *("generated 4", "encoded 3", "encoded 4"),
    ]
    assert (report.ok, report.images) == (5, 5)


KEPT_STEPS: Record = {
    "text2img": {"model": "sd", "num_inference_steps": 2, "then": ["img2img"], "keep_steps": True},
    "img2img": {"model": "sd", "num_inference_steps": 2, "strength": 1.0},
}


def test_each_image_of_a_row_and_each_of_its_steps_is_an_object_of_its_own(tmp_path: Path) -> None:
    """Of equal images too; and what is stored of an image is its own width and height."""
    output = {"path": str(tmp_path / "out"), "images": "files"}
    rows = [{"row_id": i, "prompt": "x", "num_images_per_prompt": 3} for i in range(2)]
    plan = plan_of(tmp_path, rows, output=output, routes=KEPT_STEPS)

    def generated(sample: Sample) -> Generated:
        kept = replace(sample, step_images=(drawn(7), drawn(7)))
        return Generated(sample=kept, pixels=drawn(7), depth=np.zeros(SIZE, np.uint16), nsfw=None)

    with worker_for(plan, ScriptedEngine(generated)) as worker:
        made = read_output(plan, [worker.run(next(plan.shards()))])

    paths = [image["path"] for row in made.rows for image in (row["image"], *row["step_images"])]
    assert len(paths) == len(set(paths)) == 2 * 3 * 3
    # Depth maps too, which have no column here.
    assert len([path for path in (tmp_path / "out" / "images").rglob("*") if path.is_file()]) == 2 * 3 * 4
    stored = [(tmp_path / "out" / path).read_bytes() for path in paths]
    assert {image_of({"image": {"bytes": data}}).size for data in stored} == {SIZE[::-1]}
    assert {(row["height"], row["width"]) for row in made.rows} == {SIZE}


def test_the_positions_of_a_shard_count_through_every_batch_in_which_it_is_read(tmp_path: Path) -> None:
    """Those to skip, those that repeat an id, those of a rehearsal, and those that are made again."""
    ids = [f"r{i}" for i in range(131)]
    plan = plan_of(tmp_path, [{"row_id": row_id, "prompt": "x"} for row_id in ids])
    shard = next(plan.shards())
    engine = ScriptedEngine(lambda sample: Generated(sample=sample, pixels=drawn(1), nsfw=None))

    with worker_for(plan, engine) as worker:
        worker.run(replace(shard, rehearse=(63, 130), skip=(1, 64, 129), repeated=(63, 128)))
        worker.run(replace(shard, skip=(1, 64, 129), repeated=(63, 128)))
        first = outcomes_by_id(read_output(plan, []))
        report = worker.run(replace(shard, again=("worker_crash",)))
        again = outcomes_by_id(read_output(plan, []))

    crashed = dict.fromkeys(("r1", "r64", "r129"), "worker_crash")
    repeated = dict.fromkeys(("r63", "r128"), "duplicate_row_id")
    assert engine.asked == [
        ids[65:128],
        [row_id for row_id in ids if row_id not in crashed | repeated],
        [*crashed],
    ]
    assert first == dict.fromkeys(ids, "ok") | crashed | repeated
    assert (report.ok, report.failed, report.images, failures(report)) == (3, 0, 3, {})
    assert again == dict.fromkeys(ids, "ok") | repeated


def test_a_snapshot_has_what_was_generated_so_far(tmp_path: Path) -> None:
    """Images and failed rows; and once the attempt is over, however it ended, the worker has no snapshot."""
    rows = [{"row_id": i, "prompt": "x", "num_images_per_prompt": 1 + i % 2} for i in range(4)]
    plan = plan_of(tmp_path, rows)
    snapshots: list[tuple[int, int]] = []

    def generated(sample: Sample) -> Generated:
        (snapshot,) = worker.progress().unfinished.values()
        failed = snapshot.unforeseen.get("nonfinite_image")
        snapshots.append((snapshot.images, failed.num_rows if failed else 0))
        if sample.opened.row.row_id == 3 and sample.image_index == 1:
            raise OSError("the device is gone")
        problem = RowError("nonfinite_image", "NaN") if sample.opened.row.row_id == 1 else None
        return Generated(sample=sample, pixels=None if problem else drawn(1), nsfw=None, problem=problem)

    with worker_for(plan, ScriptedEngine(generated)) as worker:
        with pytest.raises(OSError, match="the device is gone"):
            worker.run(next(plan.shards()))
        unfinished = worker.progress().unfinished

    assert snapshots == [(0, 0), (1, 0), (1, 1), (1, 1), (2, 1), (3, 1)]
    assert unfinished == {}


def test_every_step_of_a_shard_can_be_seen_to_move(tmp_path: Path) -> None:
    """Reading, opening each row, generating and encoding each image, whatever the engine counts.

    Reading is a batch of the columns that route rows, one of all columns, and its end.
    """
    rows = [{"row_id": i, "prompt": "x", "task": "img2img", "image": drawn_image()} for i in range(3)]
    plan = plan_of(tmp_path, rows)
    heartbeats: list[int] = []

    def generated(sample: Sample) -> Generated:
        heartbeats.append(worker.progress().heartbeats - before)
        return Generated(sample=sample, pixels=drawn(1), nsfw=None)

    with worker_for(plan, ScriptedEngine(generated), num_threads=1) as worker:
        before = worker.progress().heartbeats
        run_with(worker, plan, OnDemand([]))
        end = worker.progress().heartbeats - before

    assert heartbeats == [3 + 3, 3 + 3 + 1, 3 + 3 + 2]
    assert end == 3 + 3 + 3 + 3


def test_every_answer_of_a_store_can_be_seen_too(tmp_path: Path) -> None:
    """A part of gigabytes takes longer than a worker may stand still, and each of its pieces is a step."""
    plan = plan_of(tmp_path, [{"row_id": 1, "prompt": "x"}])

    with worker_for(
        plan, ScriptedEngine(lambda sample: Generated(sample=sample, pixels=None, nsfw=None))
    ) as worker:
        before = worker.progress().heartbeats
        repeat(lambda: None, "upload_part", trouble_of=str, deadline_s=1)
        after = worker.progress().heartbeats

    assert after > before


def test_the_seconds_of_a_report_are_those_of_each_stage_alone(tmp_path: Path) -> None:
    """Together they are the time that the shard took."""
    plan = plan_of(tmp_path, [{"row_id": i, "prompt": "x"} for i in range(65)])
    engine = ScriptedEngine(lambda sample: Generated(sample=sample, pixels=drawn(1), nsfw=None))

    with worker_for(plan, engine) as worker:
        begun = time.monotonic()
        seconds = worker.run(next(plan.shards())).seconds
        elapsed_s = time.monotonic() - begun

    assert [*seconds] == ["read", "wait", "generate", "write"]
    assert min(seconds.values()) >= 0
    # Each is rounded to a tenth of a millisecond.
    assert sum(seconds.values()) <= elapsed_s + 0.0004


class LeavingStores(Stores):
    """Inputs whose worker is told to leave while it reads them; the open files are noted."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.leave: Callable[[], None] = lambda: None
        self.opened: list[BinaryIO] = []
        self._folder = folder

    def of(self, uri: str) -> Storage:
        """A local disk, for every URI."""
        stores = self

        class Input(LocalStorage):
            def open(self, uri: str) -> BinaryIO:
                stores.leave()
                stores.opened.append(super().open(uri))
                return stores.opened[-1]

        return Input(temp_dir=str(self._folder))


def test_a_shard_that_was_read_is_not_begun_by_a_worker_that_is_to_leave(tmp_path: Path) -> None:
    """The device belongs to the shard that is on it; this one is left to another worker."""
    plan = plan_of(tmp_path, [{"row_id": 1, "prompt": "x"}])
    stores = LeavingStores(tmp_path)
    engine = ScriptedEngine(lambda sample: Generated(sample=sample, pixels=drawn(1), nsfw=None))
    output = open_output(plan.job.spec.output.path)

    with Worker(plan.job, engine=engine, stores=stores, output=output, num_threads=1) as worker:
        stores.leave = worker.leave
        with pytest.raises(ReclaimedError):
            worker.run(next(plan.shards()))

    assert len(stores.opened) == 1
    assert engine.asked == []


def test_a_worker_that_is_closed_leaves_no_thread_and_no_open_file(tmp_path: Path) -> None:
    """A process may have several workers one after the other."""
    plan = plan_of(tmp_path, [{"row_id": 1, "prompt": "x", "task": "img2img", "image": drawn_image()}])
    before = {thread.ident for thread in threading.enumerate()}
    stores = LeavingStores(tmp_path)
    engine = ScriptedEngine(lambda sample: Generated(sample=sample, pixels=drawn(1), nsfw=None))
    output = open_output(plan.job.spec.output.path)

    with Worker(plan.job, engine=engine, stores=stores, output=output, num_threads=2) as worker:
        worker.run(next(plan.shards()))
        threads = [thread for thread in threading.enumerate() if thread.ident not in before]

    assert {thread.name.partition("_")[0] for thread in threads} == {"device", "decode", "encode"}
    assert not any(thread.is_alive() for thread in threads)
    assert [file.closed for file in stores.opened] == [True]


def test_a_part_of_one_row_holds_its_pixels_as_they_were_generated(tmp_path: Path) -> None:
    """Upright, with their colours, and the depth map beside them."""
    plan = plan_of(
        tmp_path,
        [{"row_id": 1, "prompt": "x"}],
        models={"rgbd": {"checkpoint": "demo:ldm3d"}},
        routes={"ldm3d": {"model": "rgbd"}},
        default_route="ldm3d",
    )
    pixels = np.arange(np.prod(SIZE) * 3).astype(np.uint8).reshape(*SIZE, 3)
    depth = (np.arange(np.prod(SIZE)) * 500).astype(np.uint16).reshape(SIZE)
    engine = ScriptedEngine(lambda sample: Generated(sample=sample, pixels=pixels, depth=depth, nsfw=None))

    with worker_for(plan, engine) as worker:
        worker.run(next(plan.shards()))

    (row,) = pq.read_table(next((tmp_path / "out" / "data").iterdir())).to_pylist()
    stored = [np.asarray(Image.open(io.BytesIO(row[name]["bytes"]))) for name in ("image", "depth")]
    np.testing.assert_array_equal(stored[0], pixels)
    np.testing.assert_array_equal(stored[1], depth)


@pytest.mark.parametrize(("image_format", "side"), [("webp", 16_384), ("jpeg", 65_504)])
def test_an_image_that_cannot_be_encoded_costs_its_row_alone(
    tmp_path: Path, image_format: str, side: int
) -> None:
    """Whatever made it too long for its file. The other image of the row is not stored."""
    rows = [{"row_id": i, "prompt": "x", "num_images_per_prompt": 2} for i in range(3)]
    plan = plan_of(tmp_path, rows, output={"path": str(tmp_path / "out"), "format": image_format})
    long = np.zeros((8, side, 3), np.uint8)

    def generated(sample: Sample) -> Generated:
        is_long = sample.opened.row.row_id == 1 and sample.image_index == 0
        return Generated(sample=sample, pixels=long if is_long else drawn(7), depth=None, nsfw=None)

    with worker_for(plan, ScriptedEngine(generated)) as worker:
        report = worker.run(next(plan.shards()))

    made = pq.read_table(next((tmp_path / "out" / "data").iterdir())).to_pylist()
    assert (report.ok, report.failed, failures(report)) == (2, 1, {"encoding_error": 1})
    assert [(row["row_id"], row["error_code"]) for row in made] == [
        *((0, None), (0, None)),
        (1, "encoding_error"),
        *((2, None), (2, None)),
    ]
    assert f"an image of {side}x8 could not be encoded as {image_format}: " in made[2]["error_message"]


@pytest.mark.parametrize("second", [NaNEngine, NoiseEngine])
@pytest.mark.parametrize("first", [NaNEngine, NoiseEngine])
def test_a_part_that_a_broken_machine_has_committed_unheard_is_replaced(
    tmp_path: Path, first: type[NoiseEngine], second: type[NoiseEngine]
) -> None:
    """By a worker that generates its rows. Any other part stays as it is."""
    rows = text_rows(5)
    plan = plan_for(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out"))

    committed = []
    for engine in (first, second):
        with worker_for(plan, engine(0.0)) as worker:
            committed += [worker.run(shard).committed for shard in plan.shards()]

    assert committed == [True, (first, second) == (NaNEngine, NoiseEngine)]
    status = "failed" if first is second is NaNEngine else "ok"
    assert [row["status"] for row in read_output(plan, []).rows] == [status] * 5
