"""A job that grows: files that its input did not have when it began."""

import io
import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from actors.storage.output import open_output
from jobs.output.job_record import require_record
from jobs.preparation import PlanOptions, show_plan
from jobs.reports.sheet.contact_sheet import make_sheet
from jobs.reports.status import print_status
from jobs.retry import retry_job
from schemas.errors import RefusedError, SpecError
from schemas.output_layout import MAX_EXTENSIONS, SUCCESS, record_file
from tests.support.engines import NaNEngine, NoiseEngine
from tests.support.in_process import Record, job_spec, printed_by_verify
from tests.support.running import output_rows, parts, write_rows
from tests.support.s3.s3_server import S3Server
from tests.support.side_effects import Executioner
from tests.support.simulation.in_process_driver import InProcessDriver


class Growing:
    """A job whose input is the folder `in`, to which files are added, and whose output is `out`."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.input, self.output = folder / "in", folder / "out"
        sections = {"batching": {"shard_rows": 4}, **sections}
        self.driver = InProcessDriver(job_spec(self.input, self.output, **sections), num_workers=1)

    def add(self, name: str, rows: list[Record], types: Mapping[str, pa.DataType] | None = None) -> None:
        (self.input / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(self.input / name, rows, types)

    def add_prompts(self, name: str, num_rows: int) -> None:
        self.add(name, [{"prompt": f"{name} {i}"} for i in range(num_rows)])

    def parts(self) -> dict[str, bytes]:
        """The content of each part."""
        return {part.name: part.read_bytes() for part in parts(self.output)}

    def plan(self, *, extend: bool = False) -> str:
        """What `darkroom plan` prints."""
        printed = io.StringIO()
        show_plan(self.driver.spec, Console(file=printed, width=200), PlanOptions(extend=extend))
        return printed.getvalue()

    def status(self) -> str:
        printed = io.StringIO()
        print_status(str(self.output), Console(file=printed, width=200))
        return printed.getvalue()


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    """A job of six rows in two parts, which has been run."""
    job = Growing(tmp_path)
    job.add_prompts("a.parquet", 6)
    job.driver.run()
    job.driver.given.clear()
    return job


def test_new_files_are_generated_and_the_old_parts_stay(growing: Growing) -> None:
    """The new parts are named for the extension, and every command sees all rows."""
    before, record = growing.parts(), (growing.output / "_darkroom/job.json").read_bytes()
    growing.add_prompts("0.parquet", 5)

    result = growing.driver.run(extend=True)

    assert [shard.index for shard in growing.driver.given] == [2, 3]
    assert (result.run.images, result.totals.ok) == (5, 11)
    added = ["train-x0001-00000-of-00002.parquet", "train-x0001-00001-of-00002.parquet"]
    assert [*growing.parts()] == [*before, *added]
    assert before.items() <= growing.parts().items()
    assert (growing.output / "_darkroom/job.json").read_bytes() == record
    assert "11 of 11 input rows have exactly one outcome" in printed_by_verify(growing.driver.spec)
    assert "4 of 4 parts, 11 of 11 rows" in growing.status()
    sheet = make_sheet(open_output(str(growing.output)), max_images=9)
    assert (sheet.num_rows, sheet.num_parts, sheet.totals.ok) == (11, 4, 11)


def test_an_extended_job_is_resumed_and_extended_again(growing: Growing) -> None:
    """With and without `--extend`; when there is nothing to do, nothing is done."""
    for number, name in enumerate(("b.parquet", "week2/b.parquet"), 1):
        growing.add_prompts(name, 3)
        growing.driver.run(extend=True)
        assert (growing.output / record_file(number)).exists()
    before = growing.parts()
    growing.driver.given.clear()

    for extend in (False, True):
        result = growing.driver.run(extend=extend)
        assert (growing.driver.given, result.totals.ok) == ([], 12)
    assert "the input has no files that are new to the job" in growing.driver.printed
    parts(growing.output)[3].unlink()
    growing.driver.run()

    assert [shard.name for shard in growing.driver.given] == ["train-x0002-00000-of-00001"]
    assert growing.parts() == before


def test_rows_without_ids_get_names_that_no_row_has(growing: Growing) -> None:
    """Also where a new file has the name of an old one. The names of old rows stay."""
    growing.add_prompts("week2/a.parquet", 2)
    growing.add_prompts("week2/b.parquet", 1)
    growing.driver.run(extend=True)
    (growing.input / "week2").rename(growing.input / "0")
    growing.add_prompts("c.parquet", 1)
    growing.driver.run(extend=True)

    ids = [row["row_id"] for row in output_rows(growing.output)]
    assert ids == [
        *(f"a.parquet#{i}" for i in range(6)),
        *("x0001/a.parquet#0", "x0001/a.parquet#1", "x0001/b.parquet#0"),
        "c.parquet#0",
    ]
    assert len({row["seed"] for row in output_rows(growing.output)}) == 10


def test_new_files_that_look_like_old_ones_are_told_apart(growing: Growing) -> None:
    """By where they are: a copy of an old file in another folder is a new file."""
    copy = growing.input / "0" / "a.parquet"
    copy.parent.mkdir()
    copy.write_bytes((growing.input / "a.parquet").read_bytes())

    growing.driver.run(extend=True)

    record = require_record(open_output(str(growing.output)))
    assert [file.uri for file in record.files] == [str(growing.input / "a.parquet"), str(copy)]
    assert len({row["row_id"] for row in output_rows(growing.output)}) == 12


def test_an_id_that_an_old_row_has_is_not_generated_again(tmp_path: Path) -> None:
    """The plan of the extension names the old row."""
    job = Growing(tmp_path, errors={"max_rate": 0.5})
    job.add("1.parquet", [{"row_id": name, "prompt": "x"} for name in "abc"])
    job.driver.run()
    job.add("0.parquet", [{"row_id": name, "prompt": "x"} for name in "cde"])

    planned = job.plan(extend=True)
    job.driver.run(extend=True)

    assert f"0.parquet row 0 (c): duplicate_row_id: row 2 of {job.input}/1.parquet has the same id" in planned
    rows = [(row["row_id"], row["error_code"]) for row in output_rows(job.output)]
    assert rows == [*((name, None) for name in "abc"), ("c", "duplicate_row_id"), ("d", None), ("e", None)]
    assert "6 of 6 input rows have exactly one outcome" in printed_by_verify(job.driver.spec)


def test_a_job_that_is_not_to_be_extended_refuses_new_files(growing: Growing) -> None:
    """`plan`, `run` and `retry` name them, and the way to take them; nothing is changed."""
    growing.add_prompts("b.parquet", 3)
    before = (growing.output / SUCCESS).stat()
    commands = (
        growing.plan,
        growing.driver.run,
        lambda: retry_job(growing.driver.spec, Console(file=io.StringIO())),
    )

    for command in commands:
        with pytest.raises(RefusedError) as raised:
            command()
        assert f"further files by now:\n  input: {growing.input}/b.parquet is new\n" in str(raised.value)
        assert "run it with --extend" in str(raised.value)
    assert (growing.output / SUCCESS).stat() == before


def test_an_extension_takes_no_other_change(growing: Growing) -> None:
    """A changed spec or a changed old file is refused with the new files in place."""
    growing.add_prompts("b.parquet", 3)
    spec = growing.driver.spec
    growing.driver.spec = spec.model_copy(update={"seed": 5})
    with pytest.raises(RefusedError, match="seed: was 0, is now 5"):
        growing.driver.run(extend=True)
    growing.driver.spec = spec
    growing.add_prompts("a.parquet", 7)

    for command in (growing.driver.run, growing.plan):
        with pytest.raises(RefusedError, match=r"a\.parquet has changed \(was ") as raised:
            command(extend=True)

    assert "is new" not in str(raised.value)
    assert not (growing.output / record_file(1)).exists()


def test_a_job_may_get_a_name_and_a_list_of_paths(growing: Growing) -> None:
    """Its name and its paths do not make another job of it."""
    spec = growing.driver.spec
    growing.add_prompts("../more/b.parquet", 3)
    paths = [str(growing.input), str(growing.input.with_name("more"))]
    changed = spec.input.model_copy(update={"path": paths})
    growing.driver.spec = spec.model_copy(update={"name": "grown", "input": changed})

    growing.driver.run(extend=True)

    assert growing.status().startswith("grown: 3 of 3 parts, 9 of 9 rows")
    assert "# grown" in (growing.output / "README.md").read_text()
    growing.driver.spec = growing.driver.spec.model_copy(update={"name": "other"})
    growing.driver.run()
    assert growing.status().startswith("grown:")


def test_a_plan_tells_what_a_run_would_do(growing: Growing) -> None:
    """How far the job is; of an extension, the new rows alone."""
    parts(growing.output)[1].unlink()
    assert f"{growing.output} is of this job, and has 1 of 2 parts" in growing.plan()
    growing.add_prompts("b.parquet", 3)

    planned = growing.plan(extend=True)

    assert "3 rows in 1 file become 1 part" in planned
    assert "is of this job" not in planned
    growing.driver.spec = growing.driver.spec.model_copy(update={"seed": 5})
    with pytest.raises(RefusedError, match="seed: was 0, is now 5"):
        growing.plan()


def test_an_extension_whose_rows_cannot_be_generated_is_not_recorded(growing: Growing) -> None:
    """The budget is that of the new rows: old ones do not pay for them."""
    growing.add("b.parquet", [{"prompt": None}])
    growing.add_prompts("c.parquet", 1)

    for command in (growing.driver.run, growing.plan):
        with pytest.raises(SpecError, match="1 of 2 rows cannot be generated"):
            command(extend=True)

    assert not (growing.output / record_file(1)).exists()
    assert (growing.output / SUCCESS).exists()


def test_a_kept_column_keeps_its_type(tmp_path: Path) -> None:
    """Parts of one output have one schema: `load_dataset` refuses others."""
    job = Growing(tmp_path, input={"path": str(tmp_path / "in"), "keep": ["note"]})
    job.add("a.parquet", [{"prompt": "x", "note": 1}], {"note": pa.int32()})
    job.driver.run()
    job.add("b.parquet", [{"prompt": "y", "note": 2}], {"note": pa.int64()})

    with pytest.raises(RefusedError, match=r"column `note` is int32 in the parts .* would be int64"):
        job.driver.run(extend=True)

    job.add("b.parquet", [{"prompt": "y", "note": 2}], {"note": pa.int16()})
    job.driver.run(extend=True)
    assert [row["note"] for row in output_rows(job.output)] == [1, 2]


def test_new_files_without_rows_are_taken(growing: Growing) -> None:
    """They add no part, and the job is finished as it was."""
    growing.add("b.parquet", [], {"prompt": pa.string()})

    result = growing.driver.run(extend=True)

    assert (result.totals.ok, len(growing.parts())) == (6, 2)
    assert (growing.output / SUCCESS).exists()
    assert growing.driver.run().totals.ok == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "job-x0001.json").unlink(), "job-x0001.json is missing, although a later"),
        (
            lambda folder: (folder / "job-x0002.json").write_bytes(
                (folder / "job-x0002.json").read_bytes().replace(b'"seed": 0', b'"seed": 1')
            ),
            "`fingerprint` is not that of `identity`",
        ),
        (
            lambda folder: (folder / "job-x0003.json").write_bytes((folder / "other.json").read_bytes()),
            "job-x0003.json is of another job than _darkroom/job.json",
        ),
    ],
)
def test_a_damaged_record_of_an_extension_is_refused(
    growing: Growing, tmp_path: Path, change: Any, message: str
) -> None:
    """With its name."""
    for name in ("b", "c"):
        growing.add_prompts(f"{name}.parquet", 1)
        growing.driver.run(extend=True)
    other = Growing(tmp_path / "other", seed=1)
    other.add_prompts("a.parquet", 6)
    other.driver.run()
    folder = growing.output / "_darkroom"
    (folder / "other.json").write_bytes((other.output / "_darkroom/job.json").read_bytes())
    change(folder)

    with pytest.raises(RefusedError, match=message):
        growing.status()


def test_an_extension_is_refused_while_a_driver_is_at_work(growing: Growing) -> None:
    """That driver would write reports without the new rows. When it is done, the job can be extended."""
    said = []

    def extend_meanwhile(*_: object) -> None:
        growing.add_prompts("b.parquet", 3)
        with pytest.raises(RefusedError) as raised:
            InProcessDriver(growing.driver.spec).run(extend=True)
        said.append(str(raised.value))

    parts(growing.output)[1].unlink()
    growing.driver.before = extend_meanwhile

    assert growing.driver.run().totals.ok == 6
    assert ["another driver is using" in each for each in said] == [True]
    assert not (growing.output / record_file(1)).exists()
    growing.driver.before = lambda *_: None
    assert growing.driver.run(extend=True).totals.ok == 9


def test_no_more_extensions_than_names_can_sort(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest lists parts in the order of their names."""
    assert record_file(MAX_EXTENSIONS) < record_file(MAX_EXTENSIONS + 1).replace("x1", "y1")
    monkeypatch.setattr("jobs.output.job_record.MAX_EXTENSIONS", 0)
    growing.add_prompts("b.parquet", 1)

    with pytest.raises(SpecError, match="was extended 0 times, which is the most"):
        growing.driver.run(extend=True)


@pytest.mark.parametrize("extend", [False, True])
def test_an_extension_may_be_killed_at_any_time(
    growing: Growing, monkeypatch: pytest.MonkeyPatch, *, extend: bool
) -> None:
    """Before its record is written, nothing has happened; from then on, any run goes on with it."""
    growing.add_prompts("b.parquet", 5)
    executioner = Executioner(monkeypatch)
    run = partial(growing.driver.run, extend=True)
    for _ in executioner.killing_at_each_write(growing.output, run, least=10):
        is_recorded = (growing.output / record_file(1)).exists()
        assert f"of {4 if is_recorded else 2} parts" in growing.status()
        if is_recorded and len(growing.parts()) < 4:
            assert not (growing.output / SUCCESS).exists()
        if not (is_recorded or extend):
            with pytest.raises(RefusedError, match="further files"):
                growing.driver.run()
            continue

        result = growing.driver.run(extend=extend)

        assert (result.totals.ok, len(growing.parts())) == (11, 4)
        assert "finished at" in growing.status()
        assert "11 of 11 input rows have exactly one outcome" in printed_by_verify(growing.driver.spec)


def test_a_job_of_a_thousand_rows_grows_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the midst of each, retried and verified: every row is there once, and no old part changes."""
    # The images of seven contact sheets would take most of the time.
    monkeypatch.setattr("jobs.reports.finish.write_report", lambda *_, **__: None)
    chance = random.Random(4)
    job = Growing(tmp_path, batching={"shard_rows": 50}, errors={"max_rate": 1.0})
    job.add("0.parquet", [{"prompt": str(i)} for i in range(1000)])
    job.driver.run()
    executioner = Executioner(monkeypatch)
    num_rows = 1000
    for number in (1, 2, 3):
        before = job.parts()
        for name in ("a", "b"):
            job.add(f"{number}{name}.parquet", [{"prompt": f"{number}{i}"} for i in range(110)])
        num_rows += 220
        job.driver.engine = lambda: NaNEngine(0)
        num_writes = chance.randrange(6, 12)
        assert executioner.kills(job.output, lambda: job.driver.run(extend=True), num_writes)
        assert len(before) < len(job.parts()) < len(before) + 6
        assert job.driver.run(extend=True).totals.ok == num_rows - 220
        assert before.items() <= job.parts().items()

        job.driver.engine = lambda: NoiseEngine(0)
        assert job.driver.retry().totals.ok == num_rows

        assert before.items() <= job.parts().items()
    assert "1,660 of 1,660 input rows have exactly one outcome" in printed_by_verify(job.driver.spec)
    assert len({row["row_id"] for row in output_rows(job.output)}) == 1660


def test_a_job_on_s3_grows(s3_env: S3Server, s3_folder: str, tmp_path: Path) -> None:
    """As on disk: the record of the extension is created, and the old parts stay what they are."""
    job = Growing(tmp_path)
    job.add_prompts("a.parquet", 3)
    storage = open_output(s3_folder).storage
    changed = job.driver.spec.output.model_copy(update={"path": s3_folder})
    job.driver.spec = job.driver.spec.model_copy(update={"output": changed})
    job.driver.run()
    (old,) = storage.list(f"{s3_folder}/data")
    job.add_prompts("b.parquet", 2)

    result = job.driver.run(extend=True)

    assert result.totals.ok == 5
    assert next(iter(storage.list(f"{s3_folder}/data"))) == old
    assert "5 of 5 input rows have exactly one outcome" in printed_by_verify(job.driver.spec)


def test_a_plan_is_made_without_the_right_to_read_the_output(
    growing: Growing, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what it does not know for that."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("jobs.preparation.PLAN_DEADLINE_S", 0.1)
    output = growing.driver.spec.output.model_copy(update={"path": "s3://out/elsewhere"})
    growing.driver.spec = growing.driver.spec.model_copy(update={"output": output})

    planned = growing.plan()

    assert "not known whether this job has begun: " in planned
    assert "6 rows in 1 file become 2 parts" in planned
