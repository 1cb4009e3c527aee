"""`_darkroom/estimate.json`: how long a job was expected to take when it began. It decides nothing."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass

from pydantic import FiniteFloat, TypeAdapter

from actors.storage.output import Output
from jobs.output.strict_json import parse_json
from schemas.errors import RefusedError
from schemas.job import StoredCount
from schemas.output_layout import ESTIMATE
from schemas.wording.amounts import duration

MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTime:
    """How long a run was expected to take, from the start of Ray to its last part."""

    rows: StoredCount
    """Input rows that it was to give an outcome."""
    workers: StoredCount
    seconds: FiniteFloat
    least_seconds: FiniteFloat
    most_seconds: FiniteFloat
    source: str
    """What it was told from, for people."""

    @property
    def range_text(self) -> str:
        """`40 s to 1 min 5 s`."""
        least, most = duration(self.least_seconds), duration(self.most_seconds)
        return least if least == most else f"{least} to {most}"


_PLANNED = TypeAdapter(PlannedTime)


def write_planned(output: Output, planned: PlannedTime) -> None:
    """Keep what is expected of a job that begins, or that is extended."""
    output.replace(ESTIMATE, json.dumps(asdict(planned), indent=2).encode())


def read_planned(output: Output) -> PlannedTime | None:
    """What was expected when the job began; None where nothing was, or where it cannot be read."""
    with suppress(FileNotFoundError, RefusedError):
        return parse_json(output.read(ESTIMATE, MAX_BYTES), _PLANNED, output.uri(ESTIMATE))
    return None
