"""Facts about rows' ids: they name one row each, over all files of a job."""

from pathlib import Path

import pytest

from actors.storage.output import Output
from actors.storage.stores import open_storage
from actors.storage.uris import normalise
from jobs.output.job_record import claim, read_record
from jobs.output.resumption import plan_of
from jobs.planning.plan import make_plan
from jobs.planning.row_ids import MAX_REPEATED
from jobs.survey.survey import make_survey
from schemas.errors import SpecError
from tests.support.engines import GreyEngine
from tests.support.in_process import Record, job_spec, make, outcomes, write_rows


def test_of_rows_with_one_id_the_first_is_made(tmp_path: Path) -> None:
    """Over all files and models, in shards of any size; the plan says where the first one is, and a row that
    is bad by itself too is told so."""
    folder = tmp_path / "rows"
    folder.mkdir()
    fox, sized = {"prompt": "a fox", "height": 64}, {"prompt": "a fox", "height": 61}
    first = [{"row_id": row_id, **fox} for row_id in ("a", "b", "a", "c")]
    second = [{"row_id": row_id, **fox} for row_id in ("d", "c")]
    second += [{"row_id": row_id, **sized} for row_id in ("b", "e")]
    write_rows(folder / "1.parquet", first)
    write_rows(folder / "2.parquet", second)

    for shard_rows in (1, 3, 100):
        spec = job_spec(folder, tmp_path / f"out{shard_rows}", batching={"shard_rows": shard_rows})
        plan, findings = make_plan(make_survey(spec))
        made = make(spec, GreyEngine())

        assert findings.num_bad == {"duplicate_row_id": 2, "invalid_size": 2}
        assert sum(count.rows for count in findings.counts) == 4
        assert outcomes(made) == [
            *("ok", "ok", "duplicate_row_id", "ok"),
            *("ok", "duplicate_row_id", "invalid_size", "invalid_size"),
        ]
        assert [row["row_id"] for row in made.rows] == [row["row_id"] for row in (*first, *second)]
        named = {bad.row_id: bad.problem.message for bad in findings.bad_rows if bad.row_id in "ac"}
        assert named == {
            "a": f"row 0 of {folder}/1.parquet has the same id",
            "c": f"row 3 of {folder}/1.parquet has the same id",
        }
        assert plan.files[1].repeated == {"sd": [1, 2]}


def test_a_resumed_job_knows_them(tmp_path: Path) -> None:
    """The record has them: a run that goes on does not look at the rows again."""
    rows: list[Record] = [{"row_id": row_id, "prompt": "x"} for row_id in ("a", "b", "a", "b", "c")]
    spec = job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out", batching={"shard_rows": 2})
    output = normalise(spec.output.path)
    storage = open_storage(output)
    plan, findings = make_plan(make_survey(spec))

    claim(Output(storage, output), plan, findings)
    record = read_record(Output(storage, output))

    assert record is not None
    resumed = [*plan_of(record, make_survey(spec), output).shards()]
    assert resumed == [*plan.shards()]
    assert [shard.repeated for shard in resumed] == [(), (0, 1), ()]


def test_ids_that_name_something_else_than_rows_refuse_the_job(tmp_path: Path) -> None:
    """With two places, and the way out."""
    num = MAX_REPEATED + 1
    rows = write_rows(tmp_path / "in.parquet", [{"row_id": i % num, "prompt": "x"} for i in range(2 * num)])

    with pytest.raises(SpecError) as raised:
        make_plan(make_survey(job_spec(rows, tmp_path / "out")))

    said = str(raised.value)
    assert "10,001 rows have a `row_id` that an earlier row has, 10000 for instance (row 10000 of" in said
    assert "in.parquet and row 20001 of" in said
    assert "{row_id: null}" in said


def test_ids_that_python_hashes_alike_are_told_apart(tmp_path: Path) -> None:
    """-1 and -2 have one hash, as have 0 and 2**61 - 1."""
    rows: list[Record] = [{"row_id": i, "prompt": "x"} for i in (-1, -2, 0, 2**61 - 1)]

    plan, _ = make_plan(make_survey(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out")))

    assert plan.num_rows == 4


def test_rows_without_ids_are_told_apart_in_files_of_one_name(tmp_path: Path) -> None:
    """As partitioned datasets have them: the folders are part of the name, and so of the seed."""
    for day in ("day=1", "day=2"):
        (tmp_path / "rows" / day).mkdir(parents=True)
        write_rows(tmp_path / "rows" / day / "f.parquet", [{"prompt": "x"}])

    made = make(job_spec(tmp_path / "rows", tmp_path / "out"), GreyEngine())

    assert [row["row_id"] for row in made.rows] == ["day=1/f.parquet#0", "day=2/f.parquet#0"]
    assert len({row["seed"] for row in made.rows}) == 2
