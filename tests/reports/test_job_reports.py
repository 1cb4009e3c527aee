"""Facts about what people read of a job: its status, and the files that are written when it is done."""

import io
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from actors.engine.engine import Generated
from actors.rows.opened_rows import OpenedRow
from actors.storage.output import Output
from jobs.output.figures import RunFigures, Totals, outcomes_text
from jobs.output.job_record import JobRecord, claim
from jobs.output.lease import VALID_S
from jobs.output.tally import Abandoned, Tally
from jobs.planning.plan import make_plan
from jobs.reports.finish import finish
from jobs.reports.run_result import RunResult, print_result
from jobs.reports.sheet.contact_sheet import make_sheet, write_report
from jobs.reports.status import print_status, watch_status
from jobs.reports.success import is_finished
from jobs.reports.summary import read_summary
from jobs.survey.survey import make_survey
from schemas.errors import RefusedError
from schemas.job import Shard
from schemas.output_layout import LEASE, SUMMARY, shard_name
from tests.support.engines import GreyEngine
from tests.support.in_process import Record, job_spec, make, write_rows
from tests.support.side_effects import RecordingStorage

FIRST: list[Record] = [
    {"prompt": "a", "height": 61},
    {"prompt": "b"},
    {"prompt": None},
    {"prompt": "flagged"},
    {"prompt": None},
]
SECOND: list[Record] = [
    {"prompt": "c", "height": 64},
    {"prompt": None},
    {"prompt": "d"},
    {"prompt": "flagged"},
]
SHARD = Shard(index=1, name=shard_name(1, 5), uri="in.parquet", etag="", model="sd", start=2, stop=4)
TOTALS = Totals(
    ok=3, filtered=2, failed=4, images=5, error_codes=(("missing_prompt", 3), ("invalid_size", 1))
)
"""Of both files, in five parts, without their size in bytes. A withheld image counts as generated."""


class Flagging(GreyEngine):
    """Makes grey images, and flags those whose prompt says so."""

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        for generated in super().generate(rows, decoders):
            texts = generated.sample.opened.row.texts
            yield replace(generated, nsfw=texts["prompt"] == "flagged")


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """An empty output, whose storage notes what is written."""
    return Output(RecordingStorage(temp_dir=str(tmp_path / "tmp")), str(tmp_path / "out"))


@pytest.fixture
def record(tmp_path: Path, output: Output) -> JobRecord:
    """The record of a job whose nine rows of two files are in five parts, and which is not finished."""
    (tmp_path / "rows").mkdir()
    for name, rows in (("1", FIRST), ("2", SECOND)):
        write_rows(tmp_path / "rows" / f"{name}.parquet", rows, {"height": pa.int64()})
    spec = job_spec(tmp_path / "rows", tmp_path / "out", batching={"shard_rows": 2})
    record = claim(output, *make_plan(make_survey(spec)))
    make(spec, Flagging())
    return record


def status(output: Output) -> list[str]:
    """The lines that `darkroom status` prints."""
    printed = io.StringIO()
    print_status(output.path, Console(file=printed, width=200))
    return printed.getvalue().splitlines()


def figures() -> RunFigures:
    return Tally(rows_total=9, rows_before=0).figures()


def parts_of(output: Output) -> list[Path]:
    return sorted((Path(output.path) / "data").iterdir())


def write_lease(output: Output, age_s: float) -> None:
    """The lease of a driver that has been silent for this long."""
    lease = {"driver": "d", "host": "far", "pid": 7, "renewed_at": time.time() - age_s, "ended": False}
    lease |= {"rows_done": 1200, "images_per_second": 2.5, "seconds_left": 7500, "workers": 3}
    output.replace(LEASE, json.dumps(lease).encode())


def test_status_counts_the_rows_of_every_part_and_file(output: Output, record: JobRecord) -> None:
    """Before the job is done and afterwards; the most frequent error comes first."""
    for part in parts_of(output)[1:3]:
        part.rename(part.with_suffix(".away"))
    partly = status(output)
    for part in parts_of(output):
        part.rename(part.with_suffix(".parquet"))
    finish(output, record, figures())

    assert partly == [
        "test: 3 of 5 parts, 6 of 9 rows",
        "3 rows ok, 1 filtered, 2 failed (1 invalid_size, 1 missing_prompt); 4 images",
        "no driver is running; run the job again to resume",
    ]
    done = status(output)
    assert done[:2] == [
        "test: 5 of 5 parts, 9 of 9 rows",
        "3 rows ok, 2 filtered, 4 failed (3 missing_prompt, 1 invalid_size); 5 images",
    ]
    assert done[2].startswith("finished at 2")


def test_status_tells_of_a_driver_only_while_it_lives(output: Output, record: JobRecord) -> None:
    """A part that is gone makes the job unfinished, whatever an old summary says."""
    finish(output, record, figures())
    parts_of(output)[0].unlink()
    before = status(output)[2]
    write_lease(output, age_s=3)
    living = status(output)[2]
    write_lease(output, age_s=VALID_S + 1)

    gone = status(output)[2]

    assert before == gone == "no driver is running; run the job again to resume"
    assert living == (
        "the driver is process 7 on far, last heard from 3 s ago: about 1,200 rows done, 2.5 images/s, "
        "2 h 5 min left, 3 workers"
    )


def test_a_watched_status_is_shown_again_when_it_has_changed_and_ends_with_the_job(
    output: Output, record: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a log, nothing is printed while nothing changes."""
    write_lease(output, age_s=VALID_S + 1)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            finish(output, record, figures())

    monkeypatch.setattr(time, "sleep", sleep)
    printed = io.StringIO()

    watch_status(output.path, Console(file=printed, width=200))

    lines = printed.getvalue().splitlines()
    assert len(lines) == 6
    assert lines[2].startswith("no driver is running")
    assert lines[5].startswith("finished at 2")


def test_the_reports_of_a_finished_job_count_every_part(output: Output, record: JobRecord) -> None:
    """The totals, the summary, the card, the sheet, and the manifest with a line for each part."""
    size_bytes = sum(part.stat().st_size for part in parts_of(output))

    totals = finish(output, record, figures())

    summary = read_summary(output)
    assert summary is not None
    assert totals == summary.totals == replace(TOTALS, size_bytes=size_bytes)
    raw = json.loads((Path(output.path) / SUMMARY).read_text())
    assert (raw["rows"], raw["shards"], raw["name"]) == (9, 5, "test")
    assert raw["finished_at"].endswith("+00:00")
    lines = (Path(output.path) / "_darkroom" / "manifest.jsonl").read_text().splitlines()
    stored = [output.storage.stat(str(part)) for part in parts_of(output)]
    assert [json.loads(line) for line in lines] == [
        {"part": f"data/{part.name}", "size_bytes": entry.size_bytes, "etag": entry.etag}
        for part, entry in zip(parts_of(output), stored, strict=True)
        if entry is not None
    ]
    sheet = make_sheet(output, max_images=9)
    assert (sheet.num_rows, sheet.num_parts, sheet.num_shards, len(sheet.failures)) == (9, 5, 5, 4)
    assert sheet.totals == totals
    card = (Path(output.path) / "README.md").read_text()
    assert f"9 rows, generated with darkroom: {outcomes_text(TOTALS)}.\n" in card


def test_reports_come_before_success_and_the_sheet_after_the_summary_that_it_shows(
    output: Output, record: JobRecord
) -> None:
    """A sheet alone does not mean that a job is done."""
    write_report(output)
    finished_by_the_sheet = is_finished(output)
    assert isinstance(output.storage, RecordingStorage)
    output.storage.written.clear()

    finish(output, record, figures())

    written = output.storage.written
    assert not finished_by_the_sheet
    assert is_finished(output)
    assert written.index("summary.json") < written.index("contact-sheet.html")
    assert sorted(written[:-1]) == ["README.md", "contact-sheet.html", "manifest.jsonl", "summary.json"]
    assert written[-1] == "_SUCCESS"
    assert '"finished_at"' in (Path(output.path) / "contact-sheet.html").read_text()


def test_a_damaged_summary_is_refused_with_the_way_out(output: Output, record: JobRecord) -> None:
    """It is not taken for none, which would hide the damage."""
    finish(output, record, figures())
    os.truncate(Path(output.path) / SUMMARY, 20)

    with pytest.raises(RefusedError, match="It is only a report: run the job again, which writes it anew"):
        status(output)


@pytest.mark.parametrize(
    ("abandoned", "lines"),
    [
        ((), [f"nothing to do; total: {outcomes_text(TOTALS)}", "output: out"]),
        (
            (Abandoned(shard=SHARD, reason="lost"),),
            [f"generated 0 images; total: {outcomes_text(TOTALS)}", "output: out"],
        ),
    ],
)
def test_a_run_that_left_shards_out_names_no_contact_sheet(
    abandoned: tuple[Abandoned, ...], lines: list[str]
) -> None:
    """The sheet is made when all parts are there."""
    printed = io.StringIO()
    result = RunResult(output="out", totals=TOTALS, num_missing=len(abandoned), abandoned=abandoned)

    print_result(result, Console(file=printed, width=200), "job.yaml")

    sheet = [] if abandoned else ["contact sheet: out/contact-sheet.html"]
    assert printed.getvalue().splitlines()[: len(lines + sheet) + 1] == [*lines, *sheet, "next:"]


@pytest.mark.parametrize(
    ("failed", "num_missing", "commands"),
    [
        (0, 0, ["verify 'my out'", "replay 'my out' ROW_ID", "status 'my out'"]),
        (2, 0, ["retry job.yaml", "verify 'my out'", "replay 'my out' ROW_ID"]),
        (2, 1, ["run job.yaml", "retry job.yaml", "verify 'my out'"]),
    ],
)
def test_a_run_names_the_three_commands_that_come_next(
    failed: int, num_missing: int, commands: list[str]
) -> None:
    """They can be pasted: names with spaces are quoted."""
    printed = io.StringIO()
    result = RunResult(output="my out", totals=Totals(failed=failed), num_missing=num_missing)

    print_result(result, Console(file=printed, width=80), "job.yaml")

    _, _, after = printed.getvalue().partition("next:\n")
    assert re.findall(r"^  darkroom (.*?) +# .+$", after, re.MULTILINE) == commands
