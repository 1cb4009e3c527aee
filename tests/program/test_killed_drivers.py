"""Drivers that are killed between any two of their writes: what is left agrees with itself, and can go on."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from actors.storage.output import open_output
from jobs.output.figures import Totals
from jobs.reports.run_result import RunResult
from jobs.reports.sheet.contact_sheet import make_sheet, write_report
from jobs.reports.status import print_status
from schemas.output_layout import CONTACT_SHEET, DATASET_CARD, MANIFEST, SUCCESS, SUMMARY
from tests.support.engines import NaNEngine, NoiseEngine
from tests.support.in_process import job_spec, printed_by_verify
from tests.support.running import output_rows, parts, text_rows, write_rows
from tests.support.side_effects import Executioner
from tests.support.simulation.in_process_driver import InProcessDriver

NUM_ROWS = 5
"""In three parts."""
Command = Callable[[InProcessDriver], RunResult]


@pytest.fixture
def executioner(monkeypatch: pytest.MonkeyPatch) -> Executioner:
    return Executioner(monkeypatch)


@pytest.fixture
def driver(tmp_path: Path) -> InProcessDriver:
    """The driver of a job whose rows all failed in its first run. From now on they can be generated."""
    rows = write_rows(tmp_path / "rows.parquet", text_rows(NUM_ROWS))
    spec = job_spec(rows, tmp_path / "out", batching={"shard_rows": 2}, errors={"max_rate": 1.0})
    driver = InProcessDriver(spec, num_workers=1)
    driver.engine = lambda: NaNEngine(0)
    driver.run()
    driver.engine = lambda: NoiseEngine(0)
    return driver


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def lose_a_part(output: Path) -> None:
    parts(output)[1].unlink()


def outcomes(output: Path) -> tuple[int, int, int]:
    """The numbers of parts, and of their rows that are ok and that failed."""
    rows = [row["status"] for row in output_rows(output)]
    return len(parts(output)), rows.count("ok"), rows.count("failed")


def status(output: Path) -> str:
    printed = io.StringIO()
    print_status(str(output), Console(file=printed, width=200))
    return printed.getvalue()


def tells_the_truth(output: Path) -> bool:
    """Check what every reader says against the parts; whether the job is finished."""
    num_parts, ok, failed = outcomes(output)
    told, sheet = status(output), make_sheet(open_output(str(output)), max_images=0)
    finished = (output / SUCCESS).exists()

    assert f"{num_parts} of 3 parts" in told
    assert f"{ok} rows ok, 0 filtered, {failed} failed" in told
    assert (sheet.totals.ok, sheet.totals.failed) == (ok, failed)
    assert bool(sheet.last_run) == ("finished at" in told) == (finished and num_parts == 3)
    assert ("to write its reports" in told) == (num_parts == 3 and not finished)
    assert ("to resume" in told) == (num_parts < 3)
    return finished


def reports_agree(output: Path) -> None:
    """Check that each report of a finished job is that of its parts."""
    _, ok, failed = outcomes(output)
    summary = json.loads((output / SUMMARY).read_text())
    manifest = [json.loads(line) for line in (output / MANIFEST).read_text().splitlines()]
    storage = open_output(str(output)).storage
    card, sheet = (output / DATASET_CARD).read_text(), (output / CONTACT_SHEET).read_text()

    assert (summary["ok"], summary["failed"]) == (ok, failed)
    assert [line["etag"] for line in manifest] == [
        stored.etag for part in parts(output) if (stored := storage.stat(str(part)))
    ]
    assert f"{ok} rows ok, 0 filtered, {failed} failed" in card
    assert f'"ok": {ok}, "filtered": 0, "failed": {failed}' in sheet


def run(driver: InProcessDriver) -> RunResult:
    return driver.run()


def retry(driver: InProcessDriver) -> RunResult:
    return driver.retry()


@pytest.mark.parametrize("heal", [run, retry])
def test_a_retry_may_be_killed_at_any_time(
    driver: InProcessDriver, output: Path, executioner: Executioner, heal: Command
) -> None:
    """`status`, `report` and `verify` say what the parts are, and the next driver writes the reports."""
    for _ in executioner.killing_at_each_write(output, lambda: retry(driver), least=8):
        if tells_the_truth(output):
            reports_agree(output)
        write_report(open_output(str(output)))
        assert "5 of 5 input rows have exactly one outcome" in printed_by_verify(driver.spec)

        result = heal(driver)

        assert tells_the_truth(output)
        reports_agree(output)
        assert (3, result.totals.ok, result.totals.failed) == outcomes(output)
        assert heal is run or result.totals.ok == NUM_ROWS


@pytest.mark.parametrize("prepare", [lose_a_part, lambda output: (output / SUCCESS).unlink()])
@pytest.mark.parametrize("heal", [run, retry])
def test_a_run_may_be_killed_at_any_time(
    driver: InProcessDriver,
    output: Path,
    executioner: Executioner,
    heal: Command,
    prepare: Callable[[Path], None],
) -> None:
    """Also one that makes a part of a finished job anew."""
    prepare(output)
    if prepare is not lose_a_part:
        driver.engine = lambda: NaNEngine(0)
    for _ in executioner.killing_at_each_write(output, lambda: run(driver), least=8):
        num_parts, *_ = outcomes(output)
        if tells_the_truth(output) and num_parts == 3:
            reports_agree(output)

        result = heal(driver)

        assert result.num_missing == (3 - num_parts if heal is retry else 0)
        assert tells_the_truth(output) == (result.num_missing == 0)
        if not result.num_missing:
            reports_agree(output)


def test_reports_of_other_parts_are_written_again(driver: InProcessDriver, output: Path) -> None:
    """By `run` and by `retry`, without a worker: somebody may have put an older part back."""
    driver.retry()
    old = (output / MANIFEST).read_bytes()
    for command in (run, retry):
        (output / MANIFEST).write_bytes(old[:-1] + b" \n" + old)
        driver.given.clear()

        result = command(driver)

        assert driver.given == []
        assert result.totals == Totals(ok=NUM_ROWS, images=NUM_ROWS, size_bytes=result.totals.size_bytes)
        assert (output / MANIFEST).read_bytes() == old
        reports_agree(output)
