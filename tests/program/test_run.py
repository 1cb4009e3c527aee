"""`darkroom run` from beginning to end, and again: the demo on a local Ray, and a job with bad images."""

import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.output.figures import rate_text
from schemas.spec.spec_file import load_spec
from tests.support.engines import GreyEngine
from tests.support.running import (
    ROOT,
    Finished,
    Record,
    darkroom,
    darkroom_here,
    output_rows,
    parts,
    row_ids,
    text_rows,
    write_rows,
    write_spec,
)
from tests.support.simulation.in_process_driver import InProcessDriver

DEMO = "configs/demo.yaml"
RED_CIRCLE = "text2img-a-big-red-circle-at-the-left-on-a-white-background"
BROKEN = "broken-on-purpose"
NO_RAY = {"RAY_ADDRESS": "127.0.0.1:1"}
"""Nobody listens there: a command that succeeds with it has not asked for Ray."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A run and its output."""

    finished: Finished
    output: Path
    spec: Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The demo, made by two workers."""
    output = tmp_path_factory.mktemp("demo") / "out"
    finished = darkroom("run", DEMO, "--set", f"output.path={output}", "--set", "workers.num=2")
    return Ran(finished=finished, output=output, spec=ROOT / DEMO)


@pytest.fixture(scope="module")
def over_budget(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Six rows of words, and three whose image turns out to be cut off: more than the 1 % allowed."""
    folder = tmp_path_factory.mktemp("over-budget")
    write_rows(folder / "rows.parquet", text_rows(6) + cut_off_rows(3))
    output = folder / "out"
    files = {"output": {"path": str(output), "images": "files"}}
    spec = write_spec(folder / "job.yaml", "rows.parquet", output, **files, workers={"num": 1})
    driver = InProcessDriver(load_spec(spec), num_workers=1)
    driver.engine = GreyEngine
    # A log in ASCII, which lacks some signs of the progress.
    finished = driver.command("run", spec, cwd=folder, PYTHONIOENCODING="ascii")
    return Ran(finished=finished, output=output, spec=spec)


def cut_off_rows(count: int) -> list[Record]:
    """Rows whose PNG has a good header and half of its body: nothing tells before it is decoded."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(file, "PNG")
    image = {"bytes": file.getvalue()[: len(file.getvalue()) // 2], "path": None}
    return [
        {"row_id": f"cut-{i}", "task": "img2img", "prompt": "a gradient", "image": image}
        for i in range(count)
    ]


def demo_ids() -> list[str]:
    return sorted(pq.read_table(ROOT / "demo" / "rows.parquet").column("row_id").to_pylist())


def test_the_demo_makes_every_input_row_once(demo: Ran) -> None:
    """Exit code 0, and `verify` agrees."""
    assert demo.finished.code == 0, demo.finished.err
    assert row_ids(demo.output) == demo_ids()
    assert "total: 45 rows ok, 0 filtered, 1 failed" in demo.finished.out

    verified = darkroom_here("verify", demo.output)

    assert verified.code == 0, verified.err
    assert verified.out.endswith("verified\n")


def test_a_broken_row_keeps_its_place_with_the_reason(demo: Ran) -> None:
    """Its image is null; a row without an image is not a row that is missing."""
    row = next(row for row in output_rows(demo.output) if row["row_id"] == BROKEN)

    assert (row["status"], row["image"]) == ("failed", None)
    assert row["error_code"]
    assert row["error_message"]


def test_the_output_opens_as_a_hugging_face_dataset_of_images(demo: Ran, tmp_path: Path) -> None:
    """With no more than the folder's name, as on the Hub."""
    from datasets import load_dataset  # deferred: it takes seconds that the other tests need not wait

    found = load_dataset(str(demo.output), split="train", cache_dir=str(tmp_path))
    pictures = {row["row_id"]: row["image"] for row in found}

    assert isinstance(pictures[RED_CIRCLE], Image.Image)
    assert pictures[RED_CIRCLE].size == (64, 64)
    assert pictures[BROKEN] is None


def test_output_that_is_no_terminal_is_plain_lines(demo: Ran) -> None:
    """No colours, no carriage returns: what `ray job logs` and files show."""
    text = demo.finished.out + demo.finished.err

    assert re.search(r"[\x1b\r\x07]", text) is None
    assert "devices: 2 workers with 1 CPU each\n" in demo.finished.out
    assert re.search(
        r"^46 of 46 rows \(100%\) · [0-9.]+ (images/s|s/image) · ", demo.finished.out, re.MULTILINE
    )
    assert demo.finished.err == ""


def test_a_finished_job_has_everything_that_goes_with_the_parts(demo: Ran) -> None:
    """`_SUCCESS`, the dataset card, the contact sheet and the summary; no temporary file."""
    files = {str(path.relative_to(demo.output)) for path in demo.output.rglob("*") if path.is_file()}

    assert files == {
        "_SUCCESS",
        "README.md",
        "contact-sheet.html",
        "_darkroom/driver.json",
        "_darkroom/job.json",
        "_darkroom/manifest.jsonl",
        "_darkroom/summary.json",
        *(f"data/train-{i:05d}-of-00011.parquet" for i in range(11)),
    }


def test_no_worker_loads_a_checkpoint_twice(demo: Ran) -> None:
    """The summary counts them, over both workers."""
    models = json.loads((demo.output / "_darkroom" / "job.json").read_text())["models"]

    took = json.loads((demo.output / "_darkroom" / "summary.json").read_text())["last_run"]

    assert len(models) <= took["checkpoint_loads"] <= 2 * len(models)


def test_status_and_report_tell_of_a_finished_job(demo: Ran) -> None:
    """From the output alone."""
    status, report = darkroom_here("status", demo.output), darkroom_here("report", demo.output)

    assert "demo: 11 of 11 parts, 46 of 46 rows" in status.out
    assert "finished at 20" in status.out
    assert report.code == 0
    assert report.out == f"{demo.output}/contact-sheet.html\n"


def test_terminal_status_summary_card_and_sheet_have_the_same_figures(demo: Ran) -> None:
    """What the run printed is what everything else says, in its words or in its numbers."""
    out = demo.finished.out
    said = re.search(r"^(generated (\d+) images? in .*? \((.*?)\)); total: (.*)$", out, re.MULTILINE)
    assert said
    generated, num_images, rate, outcomes = said.groups()

    status = darkroom_here("status", demo.output).out
    summary = json.loads((demo.output / "_darkroom" / "summary.json").read_text())
    card, page = ((demo.output / name).read_text() for name in ("README.md", "contact-sheet.html"))
    sheet = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])

    assert outcomes == "45 rows ok, 0 filtered, 1 failed (1 invalid_image); 46 images"
    assert int(num_images) == 46
    assert f"\n46 of 46 rows (100%) · {rate} · " in out
    assert f"\n{outcomes}\nfinished at {summary['finished_at']}; the last run {generated}\n" in status
    assert f"46 rows, generated with darkroom: {outcomes}.\n" in card
    assert (sheet["last_run"], sheet["finished_at"]) == (generated, summary["finished_at"])
    run = summary["last_run"]
    assert (run["rows"], run["failed"], run["images"]) == (46, 1, 46)
    assert run["images_per_second"] == pytest.approx(run["images"] / run["working_seconds"])
    assert rate_text(run["images_per_second"]) == rate
    for name in ("ok", "filtered", "failed", "images", "size_bytes"):
        assert summary[name] == sheet["totals"][name], name
    assert summary["size_bytes"] == sum(part.stat().st_size for part in parts(demo.output))


def test_a_second_run_finds_nothing_to_do_and_starts_no_ray(demo: Ran) -> None:
    """The listing of `data/` decides, so this is quick."""
    before = [part.stat().st_mtime_ns for part in parts(demo.output)]

    again = darkroom_here("run", DEMO, "--set", f"output.path={demo.output}", **NO_RAY)

    assert again.code == 0, again.err
    assert "nothing to do; total: 45 rows ok" in again.out
    assert [part.stat().st_mtime_ns for part in parts(demo.output)] == before


def test_a_job_that_was_killed_while_finishing_is_finished_by_the_next_run(demo: Ran) -> None:
    """`_SUCCESS` is written last: without it, what stands beside the parts may be missing."""
    (demo.output / "_SUCCESS").unlink()
    (demo.output / "contact-sheet.html").unlink()

    again = darkroom_here("run", DEMO, "--set", f"output.path={demo.output}", **NO_RAY)

    assert again.code == 0, again.err
    assert (demo.output / "_SUCCESS").exists()
    assert (demo.output / "contact-sheet.html").exists()


def test_a_changed_spec_is_refused_and_the_difference_named(demo: Ran) -> None:
    """Exit code 4, before anything is generated."""
    changed = darkroom_here("run", DEMO, "--set", f"output.path={demo.output}", "--set", "seed=7", **NO_RAY)

    assert changed.code == 4
    assert f"{demo.output} belongs to another job, or this job has changed" in changed.err
    assert "seed: was 0, is now 7" in changed.err


def test_more_failed_rows_than_the_budget_allows_end_with_exit_code_3(over_budget: Ran) -> None:
    """The output is whole all the same: failing rows are recorded, not lost."""
    assert over_budget.finished.code == 3
    assert "9 of 9 rows (100%) ? " in over_budget.finished.out
    assert "3 of 9 rows failed (3 invalid_image), more than errors.max_rate (0.01) allows" in (
        over_budget.finished.err
    )
    assert row_ids(over_budget.output) == [f"cut-{i}" for i in range(3)] + [f"row-000{i}" for i in range(6)]
    assert (over_budget.output / "_SUCCESS").exists()


def test_the_budget_may_be_raised_afterwards(over_budget: Ran) -> None:
    """`errors` and `workers` say nothing about the output, so a change of them is no other job."""
    enough = ("--set", "errors.max_rate=0.5")

    again = darkroom_here("run", over_budget.spec, *enough, cwd=over_budget.spec.parent, **NO_RAY)

    assert again.code == 0, again.err


def test_an_input_that_was_moved_is_the_same_input(over_budget: Ran, tmp_path: Path) -> None:
    """A Ray job finds its relative `input.path` in another folder each time it is submitted."""
    shutil.copy(over_budget.spec.parent / "rows.parquet", tmp_path)

    again = darkroom_here("run", over_budget.spec, cwd=tmp_path, **NO_RAY)

    assert "nothing to do" in again.out, again.err


def test_images_as_files_are_objects_that_the_parts_name(over_budget: Ran) -> None:
    """One file per image, and no other; `verify` reads and checks them."""
    named = [row["image"]["path"] for row in output_rows(over_budget.output) if row["image"]]
    images = (over_budget.output / "images").rglob("*.png")
    there = [str(path.relative_to(over_budget.output)) for path in images]

    verified = darkroom_here("verify", over_budget.output)

    assert len(named) == 6
    assert sorted(there) == sorted(named)
    assert [path.split("/")[2][:17] for path in sorted(named)] == [f"00000{i}-0-row-000{i}" for i in range(6)]
    assert verified.code == 0, verified.err
    assert "6 images decode and match their checksums" in verified.out


def test_a_changed_input_is_refused(over_budget: Ran) -> None:
    """By its content: the file has the name and the size that it had."""
    rows = over_budget.spec.parent / "rows.parquet"
    original = rows.read_bytes()
    rows.write_bytes(original[:20] + bytes([original[20] ^ 1]) + original[21:])

    changed = darkroom_here("run", over_budget.spec, cwd=rows.parent, **NO_RAY)
    rows.write_bytes(original)

    assert changed.code == 4
    assert f"input: {rows} has changed" in changed.err


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "RAY_ADDRESS is 127.0.0.1:1, but nothing answers there"),
        ("http://127.0.0.1:8265", "the address for `darkroom submit --address`"),
    ],
)
def test_a_ray_address_that_leads_nowhere_is_refused_at_once(
    address: str, message: str, tmp_path: Path
) -> None:
    """Ray itself would try for a quarter of an hour."""
    rows = write_rows(tmp_path / "rows.parquet", text_rows(2))
    spec = write_spec(tmp_path / "job.yaml", rows, tmp_path / "out")

    refused = darkroom_here("run", spec, RAY_ADDRESS=address)

    assert refused.code == 2
    assert message in refused.err


def test_rows_that_cannot_be_made_stop_a_job_before_it_begins(tmp_path: Path) -> None:
    """Where the plan knows of more of them than the budget allows: exit code 2, and the rows named."""
    rows = [{**row, "task": "text2video"} if i < 2 else row for i, row in enumerate(text_rows(6))]
    spec = write_spec(tmp_path / "job.yaml", write_rows(tmp_path / "rows.parquet", rows), tmp_path / "out")

    refused = darkroom_here("run", spec, **NO_RAY)

    assert refused.code == 2
    assert "2 of 6 rows cannot be generated" in refused.err
    assert "rows.parquet row 0 (row-0000): " in refused.err
    assert not (tmp_path / "out").exists()
