"""`_darkroom/summary.json`: what a finished job came to."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from actors.storage import Storage, join
from jobs.ownership import JobRecord
from jobs.parts import Totals
from jobs.progress import RunFigures

SUMMARY = "_darkroom/summary.json"


def read_summary(storage: Storage, output: str) -> dict[str, Any] | None:
    """The totals of a finished job; None where it is not finished."""
    try:
        return dict(json.loads(storage.read(join(output, SUMMARY))))
    except FileNotFoundError:
        return None


def write_summary(
    storage: Storage, output: str, record: JobRecord, totals: Totals, figures: RunFigures
) -> None:
    """Totals of the whole job, and the figures of the run that finished it."""
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
    storage.replace(join(output, SUMMARY), json.dumps(summary, indent=2).encode())
