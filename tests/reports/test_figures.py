"""Each figure of a job is the same wherever it is shown: terminal, status, summary, card, contact sheet."""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.output.figures import RunFigures, Totals, generated_text, outcomes_text, rate_text
from jobs.reports.run_result import RunResult, print_result
from jobs.reports.status import print_status
from schemas.output_layout import DATASET_CARD, SUCCESS, SUMMARY
from tests.support.engines import NaNEngine, NoiseEngine
from tests.support.in_process import job_spec
from tests.support.running import output_rows, parts, text_rows, write_rows
from tests.support.simulation.in_process_driver import InProcessDriver

BAD_ROWS = [{"row_id": f"bad-{i}", "prompt": None} for i in range(2)]
"""Rows that fail in every run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What people read of a job after a run, each as its text or as the file has it."""

    terminal: str
    status: str
    summary: dict[str, Any]
    card: str
    sheet: dict[str, Any]


@pytest.fixture
def driver(tmp_path: Path) -> InProcessDriver:
    """The driver of ten rows in five parts, the last of which has only rows without a prompt."""
    rows = write_rows(tmp_path / "rows.parquet", [*text_rows(8), *BAD_ROWS])
    spec = job_spec(rows, tmp_path / "out", batching={"shard_rows": 2}, errors={"max_rate": 1.0})
    return InProcessDriver(spec, num_workers=1)


def shown(driver: InProcessDriver, result: RunResult) -> Shown:
    """What all surfaces say now."""
    path = Path(driver.spec.output.path)
    terminal, status = io.StringIO(), io.StringIO()
    print_result(result, Console(file=terminal, width=200), "job.yaml")
    print_status(str(path), Console(file=status, width=200))
    page = (path / "contact-sheet.html").read_text()
    island = re.search(r'<script id="sheet" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert island
    return Shown(
        terminal=terminal.getvalue(),
        status=status.getvalue(),
        summary=json.loads((path / SUMMARY).read_text()),
        card=(path / DATASET_CARD).read_text(),
        sheet=json.loads(island[1]),
    )


def totals_of_rows(driver: InProcessDriver) -> Totals:
    """The totals, counted from the rows of the parts and from nothing else."""
    path = Path(driver.spec.output.path)
    rows = output_rows(path)
    codes: dict[str, int] = {}
    for row in rows:
        if row["error_code"]:
            codes[row["error_code"]] = codes.get(row["error_code"], 0) + 1
    return Totals(
        ok=sum(row["status"] == "ok" and row["image_index"] == 0 for row in rows),
        failed=sum(codes.values()),
        images=sum(row["image"] is not None for row in rows),
        size_bytes=sum(part.stat().st_size for part in parts(path)),
        error_codes=tuple(sorted(codes.items(), key=lambda code: -code[1])),
    )


def assert_equal_everywhere(driver: InProcessDriver, seen: Shown, last_run: RunFigures) -> None:
    """Check each surface: the totals are those of the rows, and the last run is this one."""
    totals = totals_of_rows(driver)
    outcomes, generated = outcomes_text(totals), generated_text(last_run)
    summary, sheet = seen.summary, seen.sheet

    assert f"total: {outcomes}\n" in seen.terminal
    assert f"\n{outcomes}\n" in seen.status
    assert f"{totals.rows} rows, generated with darkroom: {outcomes}.\n" in seen.card
    counts = {"ok": totals.ok, "filtered": 0, "failed": totals.failed, "images": totals.images}
    counts["size_bytes"] = totals.size_bytes
    assert {name: summary[name] for name in counts} == counts
    assert {name: sheet["totals"][name] for name in counts} == counts
    assert summary["error_codes"] == dict(sheet["totals"]["error_codes"]) == dict(totals.error_codes)
    assert summary["last_run"]["images"] == last_run.images
    assert summary["last_run"]["images_per_second"] == last_run.images_per_second
    assert summary["last_run"]["working_seconds"] == last_run.working_seconds
    assert f"; the last run {generated}\n" in seen.status
    assert sheet["last_run"] == generated
    assert sheet["finished_at"] == summary["finished_at"]
    assert f"finished at {summary['finished_at']};" in seen.status


def last_line(driver: InProcessDriver) -> str:
    """The last line of the progress."""
    return re.findall(r"^.* of .* rows? \(.*%\) · .*$", driver.printed, re.MULTILINE)[-1]


def test_the_first_run_s_figures_are_the_same_everywhere(driver: InProcessDriver) -> None:
    """A run that makes a whole output has made all of its images, and the rate is that of the last line."""
    result = driver.run()

    seen, run = shown(driver, result), result.run

    assert (run.rows, run.failed, run.images) == (10, 2, 8) == (10, 2, result.totals.images)
    assert seen.terminal.startswith(f"{generated_text(run)}; total: ")
    rate = rate_text(run.images_per_second)
    assert last_line(driver).startswith(
        f"10 of 10 rows (100%) · {rate} · 0 s left · 2 failed (2 missing_prompt) · "
    )
    assert run.images_per_second == pytest.approx(run.images / run.working_seconds)
    assert_equal_everywhere(driver, seen, run)


def test_a_resumed_run_tells_its_own_images_beside_the_totals(driver: InProcessDriver) -> None:
    """Neither images nor failures of the earlier run are counted as its own, and no rate mixes the two."""
    driver.run()
    output = Path(driver.spec.output.path)
    for part in (parts(output)[0], parts(output)[4]):
        part.unlink()
    (output / SUCCESS).unlink()

    result = driver.run()

    seen, run = shown(driver, result), result.run
    assert (run.rows, run.failed, run.images, result.totals.images) == (4, 2, 2, 8)
    assert run.images_per_second == pytest.approx(2 / run.working_seconds)
    assert " · 2 failed in this run (2 missing_prompt) · " in last_line(driver)
    assert_equal_everywhere(driver, seen, run)


def test_a_run_that_generates_nothing_keeps_the_figures_of_the_one_that_did(driver: InProcessDriver) -> None:
    """It writes the reports again, or only looks: the record stays."""
    first = driver.run().run
    (Path(driver.spec.output.path) / SUCCESS).unlink()
    reports_only = driver.run()
    seen_then = shown(driver, reports_only)

    nothing = driver.run()

    seen = shown(driver, nothing)
    assert (reports_only.run.rows, nothing.run.rows) == (0, 0)
    assert seen_then.terminal.startswith("nothing to do; total: ")
    assert_equal_everywhere(driver, seen_then, first)
    assert_equal_everywhere(driver, seen, first)


def test_a_retry_whose_rows_all_fail_again_has_generated_no_image(driver: InProcessDriver) -> None:
    """The images beside them are not its own. Its rows are those that failed, not all of their parts."""
    driver.engine = lambda: NaNEngine(0)
    driver.run()
    driver.engine = lambda: NoiseEngine(0)
    retried = driver.retry("nonfinite_image")

    again = driver.retry("missing_prompt")

    seen = shown(driver, again)
    assert (retried.run.rows, retried.run.failed, retried.run.images) == (8, 0, 8)
    assert (again.run.rows, again.run.failed, again.run.images) == (2, 2, 0)
    assert "retrying 8 failed rows of 4 parts" in driver.printed
    assert seen.terminal.startswith(f"{generated_text(again.run)}; total: ")
    assert generated_text(again.run).startswith("generated 0 images")
    assert last_line(driver).startswith("2 of 2 rows (100%)")
    assert_equal_everywhere(driver, seen, retried.run)


def test_a_retry_of_one_row_does_not_count_those_of_its_part(tmp_path: Path) -> None:
    """Three images were there before."""
    rows = [*text_rows(3), {"row_id": "bad", "prompt": None}]
    spec = job_spec(write_rows(tmp_path / "rows.parquet", rows), tmp_path / "out", errors={"max_rate": 1.0})
    driver = InProcessDriver(spec, num_workers=1)
    first = driver.run().run

    result = driver.retry("missing_prompt")

    assert (result.run.rows, result.run.failed, result.run.images) == (1, 1, 0)
    assert result.totals.images == 3
    assert_equal_everywhere(driver, shown(driver, result), first)


def test_the_run_of_another_job_is_not_taken_over(driver: InProcessDriver) -> None:
    """Somebody has copied its summary here."""
    driver.run()
    output = Path(driver.spec.output.path)
    (output / SUCCESS).unlink()
    summary = json.loads((output / SUMMARY).read_text())
    (output / SUMMARY).write_text(json.dumps(summary | {"fingerprint": "0" * 32}))

    seen = shown(driver, driver.run())

    assert seen.summary["last_run"] is None
    assert "the last run" not in seen.status
    assert seen.sheet["last_run"] == ""


def test_a_job_whose_rows_all_fail_has_the_figures_of_its_run(driver: InProcessDriver) -> None:
    """It has generated no image, and no other run has."""
    driver.engine = lambda: NaNEngine(0)

    result = driver.run()

    assert (result.run.rows, result.run.failed, result.run.images) == (10, 10, 0)
    assert_equal_everywhere(driver, shown(driver, result), result.run)


def test_failures_of_this_run_are_told_from_those_of_all_runs(driver: InProcessDriver) -> None:
    """The messages are those of this run's rows; the total counts more."""
    driver.engine = lambda: NaNEngine(0)
    driver.run()
    output = Path(driver.spec.output.path)
    parts(output)[0].unlink()

    seen = shown(driver, driver.run())

    assert (
        "10 failed (8 nonfinite_image, 2 missing_prompt); 0 images\n2 failed in this run:\n" in seen.terminal
    )
    assert "  2 rows with nonfinite_image, such as: " in seen.terminal


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0.0 images/s"),
        (13.44, "13.4 images/s"),
        (1.0, "1.0 images/s"),
        (0.9, "1.1 s/image"),
        (0.0317, "31.5 s/image"),
        (1234.5, "1,234.5 images/s"),
    ],
)
def test_a_slow_rate_is_shown_as_seconds_an_image(rate: float, text: str) -> None:
    """A large model on a CPU makes an image in half a minute."""
    assert rate_text(rate) == text


def test_a_run_of_an_earlier_version_is_told_without_what_it_lacks() -> None:
    """Its summary has no `working_seconds`."""
    older = RunFigures(images=3, seconds=9.0, images_per_second=0.5)

    assert generated_text(older) == "generated 3 images (2.0 s/image)"
