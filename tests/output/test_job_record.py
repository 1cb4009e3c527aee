"""The record of a job: who wrote it first, and which later run may go on with it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from actors.storage.output import Output, open_output
from jobs.output.job_record import MAX_RECORD_BYTES, JobRecord, claim, plan_of_record, read_record
from jobs.output.resumption import MAX_DIFFERENCES, plan_of
from jobs.planning.plan import make_plan
from jobs.survey import input_paths
from jobs.survey.input_paths import ENTRY_BYTES
from jobs.survey.survey import make_survey
from models.demo_cache import demo_checkpoint
from schemas.errors import RefusedError, SpecError
from schemas.output_layout import JOB_RECORD
from schemas.spec.job_spec import JobSpec
from tests.support.in_process import ROUTES, job_spec, write_rows


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A job of two input files, `a.parquet` and `b.parquet`, that has been recorded."""

    rows: Path
    output: Output
    record: JobRecord

    def spec(self, **changes: Any) -> JobSpec:
        return job_spec(self.rows, Path(self.output.path), **self.sections(**changes))

    def sections(self, **changes: Any) -> dict[str, Any]:
        return {
            "input": {"path": "rows", "keep": ["note"]},
            "batching": {"shard_rows": 2},
            **changes,
        }


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begun:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, num_rows in (("a", 3), ("b", 5)):
        write_rows(folder / f"{name}.parquet", [{"prompt": f"{name}{i}", "note": i} for i in range(num_rows)])
    output = open_output(str(tmp_path / "out"))
    unwritten = Begun(rows=folder, output=output, record=None)  # type: ignore[arg-type]
    return replace(unwritten, record=claim(output, *make_plan(make_survey(unwritten.spec()))))


def test_the_plan_of_the_driver_that_was_first_counts(begun: Begun) -> None:
    """The second one gets it, whatever its own is, and writes nothing."""
    before = begun.output.read(JOB_RECORD)

    second = claim(begun.output, *make_plan(make_survey(begun.spec(seed=7))))

    assert second == begun.record
    assert begun.output.read(JOB_RECORD) == before
    assert second.spec.seed == 0


def test_an_input_that_was_moved_is_read_where_it_is_now(
    begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray job unpacks its folder into a new place each time; shards and parts stay what they were."""
    shutil.copytree(begun.rows, tmp_path / "new" / "rows")
    monkeypatch.chdir(tmp_path / "new")
    survey = make_survey(begun.spec())

    plan = plan_of(begun.record, survey, begun.output.path)

    assert [file.uri for file in plan.files] == [f"{tmp_path}/new/rows/{name}.parquet" for name in "ab"]
    recorded = [*plan_of_record(begun.record).shards()]
    assert [(shard.name, shard.start, shard.stop) for shard in plan.shards()] == [
        (shard.name, shard.start, shard.stop) for shard in recorded
    ]
    assert [shard.uri for shard in recorded] == [f"{begun.rows}/{name}.parquet" for name in "aabbb"]


def test_rows_keep_their_names_where_folders_are_renamed(tmp_path: Path) -> None:
    """The ids and seeds of rows without an id come from where their file was when the job began."""
    for folder in ("one", "two"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        write_rows(tmp_path / "in" / folder / "rows.parquet", [{"prompt": folder}])
    spec = job_spec(tmp_path / "in", tmp_path / "out")
    output = open_output(spec.output.path)
    record = claim(output, *make_plan(make_survey(spec)))
    (tmp_path / "in" / "one").rename(tmp_path / "in" / "eins")

    plan = plan_of(record, make_survey(spec), output.path)

    assert [shard.file_name for shard in plan.shards()] == ["one/rows.parquet", "two/rows.parquet"]
    assert [shard.uri.removeprefix(f"{tmp_path}/in/") for shard in plan.shards()] == [
        "eins/rows.parquet",
        "two/rows.parquet",
    ]


@pytest.mark.parametrize(("folder", "goes_on"), [("seed=2", False), ("other=2", True)])
def test_a_folder_whose_name_is_read_keeps_it(
    tmp_path: Path, begun: Begun, folder: str, goes_on: bool
) -> None:
    """Its rows would have other values now. The names of other folders are of no account."""
    before = folder.replace("2", "1")
    shutil.copytree(begun.rows, tmp_path / "in" / before)
    spec = job_spec(
        tmp_path / "in", tmp_path / "other", input={"path": str(tmp_path / "in"), "keep": ["note"]}
    )
    output = open_output(spec.output.path)
    record = claim(output, *make_plan(make_survey(spec)))
    (tmp_path / "in" / before).rename(tmp_path / "in" / folder)

    if goes_on:
        assert len(plan_of(record, make_survey(spec), output.path).files) == 2
    else:
        with pytest.raises(RefusedError, match=rf"{before}/a\.parquet is missing"):
            plan_of(record, make_survey(spec), output.path)


def change_a_byte(rows: Path) -> None:
    data = bytearray((rows / "b.parquet").read_bytes())
    data[20] ^= 1
    (rows / "b.parquet").write_bytes(data)


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        (change_a_byte, ["b.parquet has changed"]),
        (lambda rows: (rows / "b.parquet").unlink(), ["b.parquet is missing"]),
        (lambda rows: shutil.copy(rows / "b.parquet", rows / "c.parquet"), ["c.parquet is new"]),
        (
            lambda rows: (rows / "a.parquet").rename(rows / "0.parquet"),
            ["a.parquet is missing", "0.parquet is new"],
        ),
    ],
)
def test_a_job_whose_input_has_changed_is_refused(
    begun: Begun, change: Callable[[Path], object], differences: list[str]
) -> None:
    """By each file's name and content, though its size be the same."""
    change(begun.rows)

    with pytest.raises(
        RefusedError, match=f"^{begun.output.path} (belongs to another|is of this) job"
    ) as raised:
        plan_of(begun.record, make_survey(begun.spec()), begun.output.path)

    lines = [line for line in str(raised.value).splitlines() if line.startswith("  ")]
    assert [line.partition(f"{begun.rows}/")[2].partition(" (")[0] for line in lines] == differences


@pytest.mark.parametrize(
    ("sections", "difference"),
    [
        ({"seed": 7}, "seed: was 0, is now 7"),
        ({"batching": {"shard_rows": 3}}, "batching.shard_rows: was 2, is now 3"),
        (
            {"routes": ROUTES | {"second": {"task": "img2img", "model": "sd"}}},
            "routes.second: was not set, is now {",
        ),
        ({"routes": {"text2img": ROUTES["text2img"]}}, 'routes.img2img: was {"'),
    ],
)
def test_a_job_whose_spec_has_changed_is_refused(
    begun: Begun, sections: dict[str, Any], difference: str
) -> None:
    """With the key, and both values: a key may also be new, or gone."""
    with pytest.raises(RefusedError) as raised:
        plan_of(begun.record, make_survey(begun.spec(**sections)), begun.output.path)

    assert f"\n  {difference}" in str(raised.value)


def change_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (change_weights, "unet/diffusion_pytorch_model.safetensors changed"),
        (lambda folder: (folder / "vae" / "notes.txt").write_text("x"), "vae/notes.txt is new"),
        (lambda folder: (folder / "scheduler" / "more.txt").unlink(), "scheduler/more.txt is missing"),
    ],
)
def test_a_job_whose_checkpoint_has_changed_is_refused(
    begun: Begun, tmp_path: Path, change: Callable[[Path], object], difference: str
) -> None:
    """The file is named, wherever in it the change is."""
    folder = Path(shutil.copytree(demo_checkpoint("sd"), tmp_path / "sd"))
    (folder / "scheduler" / "more.txt").write_text("x")
    spec = begun.spec(models={"sd": {"checkpoint": str(folder)}})
    output = open_output(str(tmp_path / "other"))
    record = claim(output, *make_plan(make_survey(spec)))
    assert plan_of(record, make_survey(spec), output.path).job.models == record.models

    change(folder)

    with pytest.raises(RefusedError) as raised:
        plan_of(record, make_survey(spec), output.path)
    assert f"\n  models.sd: {difference}\n" in str(raised.value)


def test_a_refusal_lists_ten_differences_and_counts_the_rest(begun: Begun) -> None:
    """A thousand files would fill the screen."""
    for i in range(MAX_DIFFERENCES + 3):
        shutil.copy(begun.rows / "b.parquet", begun.rows / f"c{i}.parquet")

    with pytest.raises(RefusedError) as raised:
        plan_of(begun.record, make_survey(begun.spec()), begun.output.path)

    assert str(raised.value).count(" is new") == MAX_DIFFERENCES
    assert "\n  and 3 more\n" in str(raised.value)


def test_a_record_that_could_not_be_read_back_is_not_written(begun: Begun, tmp_path: Path) -> None:
    """The job would be lost at its first interruption."""
    plan, findings = make_plan(make_survey(begun.spec()))
    long_name = replace(plan.files[0], uri="x" * MAX_RECORD_BYTES)
    output = open_output(str(tmp_path / "other"))

    with pytest.raises(SpecError, match="put the rows into fewer files, or into several jobs"):
        claim(output, replace(plan, files=(long_name,)), findings)

    assert read_record(output) is None


def test_a_recorded_job_knows_its_columns(begun: Begun) -> None:
    """Verify reads the input by them, and has no spec."""
    plan = plan_of_record(begun.record)

    assert plan.job.columns.fields == {"prompt": "prompt"}
    assert [*plan.job.columns.keep] == ["note"]
    assert json.loads(begun.output.read(JOB_RECORD))["identity"]["columns"] == {"prompt": "prompt"}


def test_more_files_than_the_record_holds_are_refused_before_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number is known when they are listed: these are no Parquet files."""
    (tmp_path / "rows").mkdir()
    for i in range(20):
        (tmp_path / "rows" / f"{i}.parquet").write_bytes(b"")
    file_bytes = len(f"{tmp_path}/rows/10.parquet") + 64 + ENTRY_BYTES
    monkeypatch.setattr(input_paths, "MAX_LISTED_BYTES", 10 * file_bytes)

    with pytest.raises(
        SpecError, match=r"no room for 20 files \(about 10 with paths of this length\); put the rows"
    ):
        make_survey(job_spec(tmp_path / "rows", tmp_path / "out"))


def test_the_record_has_room_for_the_files_of_the_survey(tmp_path: Path) -> None:
    """What is counted for a file is not more than its entry takes, and not much less."""
    spec = job_spec(write_rows(tmp_path / "in.parquet", [{"prompt": "x"}]), tmp_path / "out")
    plan, _ = make_plan(make_survey(spec))
    (file,) = plan.files
    entry = json.dumps({"files": [asdict(file)]}, indent=2)

    counted = len(file.uri) + len(file.etag) + ENTRY_BYTES

    assert len(entry) / 2 < counted < len(entry)
