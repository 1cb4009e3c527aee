"""One byte of the input, wherever it is, is noticed: before a run goes on, by each worker, and by verify."""

import io
import os
import random
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.images.spool import Spool
from actors.rows.shard_reader import ShardReader
from actors.storage.output import open_output
from actors.storage.stores import Stores
from jobs.output.content_hashes import with_hashes
from jobs.output.job_record import JobRecord, claim, read_record
from jobs.output.resumption import plan_of
from jobs.planning.plan import Plan, make_plan
from jobs.survey.survey import make_survey
from jobs.verification.verify import verify_output
from schemas.errors import DarkroomError, RefusedError
from schemas.spec.job_spec import JobSpec
from tests.support.in_process import job_spec

NUM_ROWS = 4


def spec_of(folder: Path, **input_keys: Any) -> JobSpec:
    return job_spec(
        folder / "in.parquet",
        folder / "out",
        input={"path": str(folder / "in.parquet")} | input_keys,
        batching={"shard_rows": 2},
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of 400 kB: most of it lies in none of its ends."""
    letters = random.Random(1).choices("abcdefgh", k=400_000)
    prompts = ["".join(letters[i::NUM_ROWS]) for i in range(NUM_ROWS)]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": prompts}), path, compression="none", use_dictionary=False)
    return path


def change_a_letter(path: Path) -> None:
    """Change one letter of a prompt in place, and set the mtime back."""
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(200_000)
        file.write(b"X")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def begin(spec: JobSpec) -> JobRecord:
    plan, findings = make_plan(make_survey(spec))
    return claim(open_output(spec.output.path), with_hashes(plan), findings)


def going_on(spec: JobSpec) -> Plan:
    record = read_record(open_output(spec.output.path))
    assert record is not None
    return plan_of(record, make_survey(spec), spec.output.path)


def test_a_prompt_that_changed_in_the_midst_of_a_file_is_refused(tmp_path: Path, rows: Path) -> None:
    """Though the size, both ends and the mtime are the same; the file is named."""
    spec = spec_of(tmp_path)
    begin(spec)
    assert going_on(spec).num_rows == NUM_ROWS

    change_a_letter(rows)

    with pytest.raises(
        RefusedError, match=rf"\n  input: {rows} has changed \(its size and its ends have not"
    ):
        going_on(spec)


@pytest.mark.parametrize(("begun", "now"), [("ends", "ends"), ("whole", "ends"), ("ends", "whole")])
def test_a_spec_may_say_that_the_ends_are_enough(tmp_path: Path, rows: Path, begun: str, now: str) -> None:
    """From the start, or later; the job stays the same, and workers do not read the file for it either."""
    record = begin(spec_of(tmp_path, hash=begun))
    assert bool(record.files[0].sha256) is (begun == "whole")

    change_a_letter(rows)

    plan = going_on(spec_of(tmp_path, hash=now))
    assert plan.job.fingerprint == record.fingerprint
    with closing(ShardReader(plan.job, Stores())) as reader:
        assert [len(reader.read(shard, Spool())) for shard in plan.shards()] == [2, 2]


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_worker_notices_a_change_between_two_shards_of_a_file(
    tmp_path: Path, rows: Path, is_changed: bool
) -> None:
    """It asks at each shard; the second is not made of rows that were not planned."""
    spec = spec_of(tmp_path)
    begin(spec)
    plan = going_on(spec)
    first, second = plan.shards()
    refused = pytest.raises(RefusedError, match=r"in\.parquet changed after this job was planned")

    with closing(ShardReader(plan.job, Stores())) as reader:
        reader.read(first, Spool())
        if is_changed:
            change_a_letter(rows)
        with refused if is_changed else nullcontext():
            assert len(reader.read(second, Spool())) == 2


def test_verify_names_the_file_that_changed(tmp_path: Path, rows: Path) -> None:
    """Its rows are not those that the output was made of."""
    spec = spec_of(tmp_path)
    begin(spec)

    change_a_letter(rows)

    with pytest.raises(DarkroomError, match=f"the input {rows} has changed since the job was planned"):
        verify_output(spec.output.path, Console(file=io.StringIO()))


def test_an_object_on_s3_has_no_other_hash_than_its_etag(s3_env: object, tmp_path: Path, rows: Path) -> None:
    """It is made of the whole content, and asked for without reading it."""
    uri = f"s3://inp/{tmp_path.name}/in.parquet"
    Stores().of(uri).replace(uri, rows.read_bytes())
    spec = spec_of(tmp_path, path=uri)
    begin(spec)
    (file,) = going_on(spec).files
    assert (file.sha256, len(file.etag)) == ("", 32)

    change_a_letter(rows)
    Stores().of(uri).replace(uri, rows.read_bytes())

    with pytest.raises(RefusedError, match=f"\n  input: {uri} has changed"):
        going_on(spec)
