"""`darkroom retry`: failed rows are made again, and nothing else is touched."""

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from actors.engine.diffusers_engine import DiffusersEngine
from actors.images.spool import Spool
from actors.parts.unchanged_rows import unchanged_records
from actors.rows.shard_reader import ShardReader
from actors.storage.local_disk import LocalStorage
from actors.storage.output import Output
from actors.storage.stores import Stores
from jobs.planning.plan import Plan
from schemas.errors import RefusedError
from schemas.spec.job_spec import JobSpec
from schemas.spec.spec_file import load_spec
from tests.support.in_process import (
    Made,
    Record,
    drawn_image,
    job_spec,
    make,
    model_cache,
    outcomes_by_id,
    plan_for,
    read_output,
    worker_for,
    write_rows,
)
from tests.support.running import darkroom_here, output_rows, write_spec
from tests.support.running import write_rows as write_plain_rows
from tests.support.simulation.in_process_driver import InProcessDriver

NO_RAY = {"RAY_ADDRESS": "127.0.0.1:1"}
"""Nobody listens there: a command that succeeds with it has not asked for Ray."""
ROWS: list[Record] = [
    {"row_id": f"r{i}", "prompt": f"prompt {i}", "seed": i, "num_images_per_prompt": 2 if i == 1 else 1}
    for i in range(4)
] + [{"row_id": "no-prompt", "prompt": None, "seed": 4, "num_images_per_prompt": 1}]


@contextmanager
def without_memory(engine_models: Any) -> Iterator[None]:
    """Meanwhile no image fits."""

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = engine_models.get("sd").components["unet"].conv_in.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def begun(folder: Path) -> tuple[JobSpec, Made]:
    """A job of which one run had no memory for any row."""
    spec = job_spec(write_rows(folder / "rows.parquet", ROWS), folder / "out")
    models = model_cache(spec)
    with without_memory(models):
        return spec, make(spec, DiffusersEngine(models, spec))


def again(plan: Plan, *codes: str) -> Made:
    with worker_for(plan) as worker:
        reports = [worker.run(replace(shard, again=codes)) for shard in plan.shards()]
    return read_output(plan, reports)


def test_failed_rows_are_made_again_in_their_places(tmp_path: Path) -> None:
    """What a run in which nothing fails makes, row by row; what cannot succeed fails again."""
    spec, failed = begun(tmp_path)
    made = again(plan_for(spec))
    (tmp_path / "fresh").mkdir()
    fresh = make(job_spec(tmp_path / "rows.parquet", tmp_path / "fresh"))

    assert set(outcomes_by_id(failed).values()) == {"out_of_memory", "missing_prompt"}
    assert outcomes_by_id(made) == {f"r{i}": "ok" for i in range(4)} | {"no-prompt": "missing_prompt"}
    assert made.rows == fresh.rows
    assert made.reports[0].committed
    assert (made.reports[0].ok, made.reports[0].failed) == (4, 1)


def test_every_other_row_stays_as_it_is(tmp_path: Path) -> None:
    """Its image's bytes and all its columns, also those of a row with two images."""
    spec, _ = begun(tmp_path)
    plan = plan_for(spec)
    first = again(plan)

    second = again(plan)

    assert second.parts == first.parts


def test_only_the_rows_that_failed_with_a_code_are_made_again(tmp_path: Path) -> None:
    """The others keep their places, and their failures."""
    spec, failed = begun(tmp_path)

    made = again(plan_for(spec), "missing_prompt")

    assert outcomes_by_id(made) == outcomes_by_id(failed)
    assert made.parts == failed.parts


def test_a_part_that_was_replaced_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Of two that make rows again, the first one's part stays."""
    spec, _ = begun(tmp_path)
    plan = plan_for(spec)

    class Late(LocalStorage):
        """Another one is quicker."""

        def open(self, uri: str) -> BinaryIO:
            if uri.endswith(".parquet") and "/out/data/" in uri:
                again(plan)
            return super().open(uri)

    late = Output(Late(temp_dir=f"{spec.output.path}/_darkroom/tmp"), spec.output.path)
    with worker_for(plan, output=late) as worker:
        report = worker.run(replace(next(plan.shards()), again=()))

    assert not report.committed
    assert read_output(plan, []).rows == again(plan).rows


def test_a_part_is_not_read_as_a_whole(tmp_path: Path) -> None:
    """It may have gigabytes: one row group after the other comes, in requests that are short."""
    spec, _ = begun(tmp_path)
    plan = plan_for(spec)

    class ByRanges(LocalStorage):
        """It opens parts, and does not read them."""

        def read(self, uri: str, max_bytes: int | None = None) -> bytes:
            raise AssertionError(uri)

    output = Output(ByRanges(temp_dir=f"{spec.output.path}/_darkroom/tmp"), spec.output.path)
    with worker_for(plan, output=output) as worker:
        report = worker.run(replace(next(plan.shards()), again=()))

    assert report.committed


def test_a_part_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """Somebody took it away: the job is stopped, and nothing is guessed."""
    spec, _ = begun(tmp_path)
    (part,) = (tmp_path / "out" / "data").iterdir()
    part.unlink()

    with pytest.raises(RefusedError, match="of which rows are to be generated again, is gone"):
        again(plan_for(spec))

    assert not part.exists()


def test_a_part_of_other_rows_is_refused(tmp_path: Path) -> None:
    """Nothing is guessed about whose image is whose."""
    spec, failed = begun(tmp_path)
    plan = plan_for(spec)
    with closing(ShardReader(plan.job, Stores())) as reader:
        rows = reader.read(next(plan.shards()), Spool())

    with pytest.raises(RefusedError, match="does not have row 'r1'"):
        unchanged_records(io.BytesIO(failed.parts[0]), rows[1:], (), ())
    with pytest.raises(RefusedError, match="has 1 more row than"):
        unchanged_records(io.BytesIO(failed.parts[0]), rows[:-1], (), ())


def test_the_command_makes_what_can_be_made_now(tmp_path: Path) -> None:
    """An image that was not there is there now: exit code 0, `verify` agrees, and then nothing is left."""
    rows = [{"row_id": f"t{i}", "task": "text2img", "prompt": "a fox", "image": None} for i in range(3)]
    rows.append({"row_id": "i", "task": "img2img", "prompt": "a", "image": {"bytes": None, "path": "p.png"}})
    write_plain_rows(tmp_path / "rows.parquet", rows)
    output = tmp_path / "out"
    spec = write_spec(tmp_path / "job.yaml", tmp_path / "rows.parquet", output, workers={"num": 1})
    driver = InProcessDriver(load_spec(spec), num_workers=1)
    driver.run()
    before = {row["row_id"]: row for row in output_rows(output)}
    Image.open(io.BytesIO(drawn_image()["bytes"])).save(tmp_path / "p.png")

    unknown = darkroom_here("retry", spec, "--only", "unreadable_url", cwd=tmp_path, **NO_RAY)
    retried = driver.command("retry", spec, "--only", "unreadable_uri", cwd=tmp_path)
    nothing = darkroom_here("retry", spec, cwd=tmp_path, **NO_RAY)
    verified = darkroom_here("verify", output)

    after = {row["row_id"]: row for row in output_rows(output)}
    assert (unknown.code, retried.code, nothing.code, verified.code) == (2, 0, 0, 0), retried.err
    assert "did you mean `unreadable_uri`" in unknown.err
    assert before.pop("i")["error_code"] == "unreadable_uri"
    assert after.pop("i")["status"] == "ok"
    assert after == before
    assert pq.read_metadata(next((output / "data").iterdir())).metadata[b"darkroom.error_codes"] == b"{}"
