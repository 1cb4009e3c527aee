"""Facts about `darkroom try`: a few rows of a job, generated here and now beside its output."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.storage.output import open_output
from jobs.reports.run_result import RunResult
from jobs.trial.trial_run import Choice, open_sheet, run_trial
from jobs.verification.verify import verify_output
from schemas.errors import BudgetError, SpecError
from schemas.spec.job_spec import JobSpec
from tests.support.checkpoints import paper_checkpoint
from tests.support.in_process import Record, drawn_image, job_spec, make, write_rows
from tests.support.running import output_rows

QUICK = "tests.support.engines:quick"
ROUTES: Record = {
    "text2img": {"model": "sd", "num_inference_steps": 2},
    "img2img": {"model": "sd", "num_inference_steps": 3},
}


class Desk:
    """A folder with a job, and trials of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = str(paper_checkpoint(folder / "sd"))
        self.text = ""
        """What the last trial printed."""

    def spec(self, rows: Sequence[Record], **changes: Any) -> JobSpec:
        """The spec of a job of these rows with a checkpoint of which only the card is read."""
        path = write_rows(self.folder / "rows.parquet", rows)
        sections = {"models": {"sd": {"checkpoint": self.checkpoint}}, "routes": ROUTES}
        return job_spec(path, self.folder / "out", **sections | changes)

    def try_rows(self, spec: JobSpec, engine: str = QUICK, **choice: Any) -> RunResult:
        """The result of a trial."""
        file = io.StringIO()
        try:
            return run_trial(spec, Choice(**choice), Console(file=file, width=300), engine=engine)
        finally:
            self.text = file.getvalue()

    def ids(self, spec: JobSpec, **choice: Any) -> list[str]:
        """The ids of the rows that a trial has generated."""
        return [row["row_id"] for row in self.rows(spec, **choice)]

    def rows(self, spec: JobSpec, **choice: Any) -> list[Record]:
        """The rows that a trial has generated."""
        return output_rows(Path(self.try_rows(spec, **choice).output))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A folder for a job."""
    return Desk(tmp_path)


def many_rows(count: int) -> list[Record]:
    """Rows of which one in ten is for img2img."""
    return [
        {"row_id": f"r{i}", "prompt": f"prompt {i}"}
        | (
            {"task": "img2img", "image": drawn_image()}
            if i % 10 == 0
            else {"task": "text2img", "image": None}
        )
        for i in range(count)
    ]


def test_a_trial_has_rows_of_every_route(desk: Desk) -> None:
    """As many of each; the rarer route has all of its rows where they are fewer."""
    spec = desk.spec(many_rows(130))

    assert Counter(row["task"] for row in desk.rows(spec)) == {"text2img": 8, "img2img": 8}
    assert Counter(row["task"] for row in desk.rows(spec, limit=40)) == {"text2img": 27, "img2img": 13}


def test_the_same_rows_are_tried_each_time(desk: Desk) -> None:
    """Also when the input has them in another order, and its beginning is not preferred."""
    rows = many_rows(200)
    first = desk.ids(desk.spec(rows), limit=12)
    again = desk.ids(desk.spec(rows), limit=12)
    turned = desk.ids(desk.spec(rows[::-1]), limit=12)

    assert first == again
    assert sorted(first) == sorted(turned)
    assert max(int(row_id[1:]) for row_id in first) > 100
    assert set(first) < set(desk.ids(desk.spec(rows), limit=30))


def test_rows_that_cannot_be_generated_are_counted_and_not_tried(desk: Desk) -> None:
    """The plan lists them."""
    rows: list[Record] = [
        {"row_id": f"r{i}", "prompt": "x", "height": 63 if i % 2 else 64} for i in range(10)
    ]

    assert desk.ids(desk.spec(rows)) == ["r0", "r2", "r4", "r6", "r8"]
    assert "5 rows of the input cannot be generated (5 invalid_size); `darkroom plan` lists them" in desk.text
    with pytest.raises(SpecError, match=r"none of the 5 rows can be generated \(5 invalid_size\)"):
        desk.try_rows(desk.spec(rows[1::2]))


def test_rows_are_tried_by_their_ids(desk: Desk) -> None:
    """An id that the input lacks is named with the nearest that it has."""
    spec = desk.spec(many_rows(30))

    assert desk.ids(spec, ids=("r17", "r3")) == ["r3", "r17"]
    unknown = r"the input has no row r99 \(did you mean `r9`\?\), nobody; rows that it has are r3, r0, r1$"
    with pytest.raises(SpecError, match=unknown):
        desk.try_rows(spec, ids=("r99", "r3", "nobody"))
    with pytest.raises(SpecError, match="--prompt and --rows exclude each other"):
        desk.try_rows(spec, ids=("r3",), prompts=("a cat",))


@pytest.mark.parametrize(
    ("choice", "options"),
    [
        ({}, ""),
        ({"limit": 2}, " --limit 2"),
        ({"ids": ("r3", "r17")}, " --rows r3,r17"),
        ({"prompts": ("a cat", "dogs")}, " --prompt 'a cat' --prompt dogs"),
    ],
)
def test_the_next_command_generates_the_same_rows_again(desk: Desk, choice: Record, options: str) -> None:
    """It has the options that chose them."""
    desk.try_rows(desk.spec(many_rows(20)), **choice)

    (again,) = (line for line in desk.text.splitlines() if "the same rows again" in line)
    assert again.partition("  #")[0].strip() == f"darkroom try SPEC{options}"


def test_prompts_are_tried_without_the_input(desk: Desk) -> None:
    """They take the default route; the input need not exist."""
    spec = desk.spec(many_rows(3))
    (desk.folder / "rows.parquet").unlink()

    rows = desk.rows(spec, prompts=("a cat", "a dog"))

    assert [(row["row_id"], row["task"], row["prompt"]) for row in rows] == [
        ("prompt-1", "text2img", "a cat"),
        ("prompt-2", "text2img", "a dog"),
    ]


def test_a_prompt_is_refused_by_a_default_route_that_needs_more(desk: Desk) -> None:
    """The message does not tell to correct the input, which is not read."""
    spec = desk.spec(many_rows(3), default_route="img2img")

    with pytest.raises(
        SpecError, match=r"^--prompt: the task img2img needs `image`.*--set default_route=NAME"
    ):
        desk.try_rows(spec, prompts=("a cat",))


@pytest.mark.parametrize("has_ids", [True, False])
def test_a_trial_gives_the_images_of_the_job(tmp_path: Path, has_ids: bool) -> None:
    """Byte for byte where rows do not depend on their company: ids, seeds and images beside the input too."""
    (tmp_path / "cat.png").write_bytes(drawn_image()["bytes"])
    rows: list[Record] = [{"prompt": f"prompt {i}", "task": "text2img", "image": None} for i in range(5)]
    rows += [
        {"prompt": "x", "task": "img2img", "image": {"bytes": None, "path": "cat.png"}} for _ in range(2)
    ]
    if has_ids:
        rows = [{"row_id": number, **row} for number, row in enumerate(rows)]
    path = write_rows(tmp_path / "rows.parquet", rows)
    spec = job_spec(path, tmp_path / "out", routes=ROUTES, batching={"exact": True})
    desk = Desk(tmp_path)

    tried = desk.try_rows(spec, engine="actors.engine.diffusers_engine:make_engine", limit=4)

    of_job = {row["row_id"]: row for row in make(spec).rows}
    of_trial = output_rows(Path(tried.output))
    assert [row["task"] for row in of_trial].count("img2img") == 2
    assert len(of_trial) == 4
    for row in (*of_trial, *of_job.values()):
        # It names the part, and the row's position in it.
        del row["image"]["path"]
    assert of_trial == [of_job[row["row_id"]] for row in of_trial]


def test_the_output_of_the_job_knows_nothing_of_trials(desk: Desk) -> None:
    """It does not exist after a trial before it, and stays as it is after one behind it."""
    spec = desk.spec(many_rows(20))
    output = desk.folder / "out"

    first = desk.try_rows(spec)
    assert not output.exists()
    output.mkdir()
    second = desk.try_rows(spec)

    assert not [*output.iterdir()]
    assert (first.output, second.output) == (f"{output}.trials/0001", f"{output}.trials/0002")


def test_a_trial_is_an_output_like_any_other(desk: Desk) -> None:
    """Every other command can be used with it."""
    spec = desk.spec([{"prompt": f"prompt {i}"} for i in range(70)])

    result = desk.try_rows(spec, limit=20)

    verify_output(result.output, Console(file=io.StringIO()))
    output = open_output(result.output)
    assert output.has("_SUCCESS")
    assert output.has("contact-sheet.html")
    assert f"contact sheet: {result.output}/contact-sheet.html" in desk.text
    assert "time: " in desk.text
    assert "memory: at most " in desk.text


def test_a_trial_of_which_every_row_fails_is_a_failure(desk: Desk) -> None:
    """The reason is printed, as after a run."""
    with pytest.raises(BudgetError, match="every row of the trial failed"):
        desk.try_rows(desk.spec(many_rows(5)), engine="tests.support.engines:hopeless")

    assert "with nonfinite_image, such as: all values are NaN" in desk.text


def test_a_sheet_that_no_browser_can_open_is_named(desk: Desk) -> None:
    """An output on S3 has no path that a browser takes."""
    file = io.StringIO()

    open_sheet("s3://bucket/out.trials/0001", Console(file=file, width=200))

    assert "open s3://bucket/out.trials/0001/contact-sheet.html in one" in file.getvalue()
