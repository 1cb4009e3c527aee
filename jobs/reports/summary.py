"""`_darkroom/summary.json`: the totals and rates of a finished job."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pydantic import FiniteFloat, TypeAdapter

from actors.storage.output import Output
from jobs.output.job_record import JobRecord
from jobs.output.parts import Totals
from jobs.output.strict_json import parse_json
from jobs.output.tally import RunFigures
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
    seconds: FiniteFloat | None = None
    images_per_second: FiniteFloat | None = None
    workers: StoredCount | None = None
    finished_at: str | None = None
    versions: Mapping[str, str] | None = None

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
            f"{error}. It is only a report: delete it and _SUCCESS, and run the job again, which writes both"
        ) from error


def write_summary(output: Output, record: JobRecord, totals: Totals, figures: RunFigures) -> None:
    """Write the totals of the whole job, and the figures of the run that finished it."""
    summary = {
        "name": record.name,
        "fingerprint": record.fingerprint,
        "rows": totals.rows,
        **asdict(totals),
        "error_codes": dict(totals.error_codes),
        "shards": record.num_shards,
        "seconds": round(figures.seconds, 1),
        "images_per_second": round(figures.images_per_second, 2),
        "workers": figures.workers,
        "last_run": asdict(figures),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    output.replace(SUMMARY, json.dumps(summary, indent=2).encode())
