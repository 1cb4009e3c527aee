"""`_darkroom/summary.json`: the totals of a finished job, and the figures of the last run for it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter

from actors.storage.output import Output
from jobs.output.figures import RunFigures, Totals
from jobs.output.job_record import JobRecord
from jobs.output.parts import Parts
from jobs.output.strict_json import parse_json
from jobs.reports.manifest import manifest_agrees
from jobs.reports.success import is_finished
from schemas.errors import RefusedError
from schemas.job import StoredCount
from schemas.output_layout import SUMMARY

MAX_SUMMARY_BYTES = 1 << 20
"""A hundred times what a summary needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The keys of summary.json that `darkroom status` and the contact sheet read."""

    fingerprint: str
    shards: StoredCount
    ok: StoredCount
    filtered: StoredCount
    failed: StoredCount
    images: StoredCount
    size_bytes: StoredCount
    error_codes: Mapping[str, StoredCount]
    last_run: RunFigures | None = None
    """The last run that generated an image; None if that is not known."""
    finished_at: str | None = None
    """When the summary was written."""

    def is_of(self, record: JobRecord, parts: Parts) -> bool:
        """Whether it is that of this job and, as far as their number and size tell, of just these parts."""
        counted = (self.fingerprint, self.shards, self.size_bytes)
        return parts.are_all and counted == (record.fingerprint, len(parts), parts.size_bytes)

    @property
    def totals(self) -> Totals:
        """The totals of the whole job."""
        return Totals(
            ok=self.ok,
            filtered=self.filtered,
            failed=self.failed,
            images=self.images,
            size_bytes=self.size_bytes,
            error_codes=tuple(sorted(self.error_codes.items(), key=lambda code: -code[1])),
        )


_SUMMARY = TypeAdapter(Summary)


def read_summary(output: Output) -> Summary | None:
    """The summary of a finished job; None where the job is not finished. RefusedError where it is damaged."""
    try:
        return parse_json(output.read(SUMMARY, MAX_SUMMARY_BYTES), _SUMMARY, output.uri(SUMMARY))
    except FileNotFoundError:
        return None
    except RefusedError as error:
        raise RefusedError(
            f"{error}. It is only a report: run the job again, which writes it anew"
        ) from error


def current_summary(output: Output, record: JobRecord, parts: Parts) -> Summary | None:
    """The summary of the job that these parts are; None where it is not finished or parts have changed since.

    The summary and the manifest are read, and no part. RefusedError where the summary is damaged.
    """
    # Without `_SUCCESS` a part may have been replaced by one of its size, which the manifest does not tell.
    summary = read_summary(output) if is_finished(output) else None
    is_current = summary and summary.is_of(record, parts) and manifest_agrees(output, parts)
    return summary if is_current else None


def reported_totals(output: Output, record: JobRecord, parts: Parts) -> Totals | None:
    """The totals in the summary; None where a report is missing, damaged or older than these parts."""
    # A damaged summary is refused by what shows it. Here the parts say the same.
    with suppress(RefusedError):
        if summary := current_summary(output, record, parts):
            return summary.totals
    return None


def write_summary(output: Output, record: JobRecord, totals: Totals, figures: RunFigures) -> None:
    """Write the totals of the whole job, and the figures of the last run that generated an image.

    `figures`: those of this run. If it has generated no image, the summary keeps the run that it has. If it
    has none, this run is written if it has tried any row: one that was killed has left no figures.
    """
    run = figures if figures.images else _recorded_run(output, record) or (figures if figures.rows else None)
    summary = {
        "name": record.name,
        "fingerprint": record.fingerprint,
        "rows": totals.rows,
        **asdict(totals),
        "error_codes": dict(totals.error_codes),
        "shards": record.num_shards,
        "last_run": run and asdict(run),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    output.replace(SUMMARY, json.dumps(summary, indent=2).encode())


def _recorded_run(output: Output, record: JobRecord) -> RunFigures | None:
    """The run that the present summary has, whichever parts it is of; None if it has none of this job."""
    with suppress(RefusedError):
        summary = read_summary(output)
        if summary and summary.fingerprint == record.fingerprint:
            return summary.last_run
    return None
