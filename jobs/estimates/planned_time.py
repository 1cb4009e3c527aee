"""`_darkroom/estimate.json`: how long a job was expected to take when it began. It decides nothing."""

import json
from contextlib import suppress
from dataclasses import asdict

from pydantic import TypeAdapter

from actors.storage.output import Output
from jobs.output.figures import PlannedTime
from jobs.output.strict_json import parse_json
from schemas.errors import RefusedError
from schemas.output_layout import ESTIMATE

MAX_BYTES = 1 << 16


_PLANNED = TypeAdapter(PlannedTime)


def write_planned(output: Output, planned: PlannedTime) -> None:
    """Keep what is expected of a job that begins, or that is extended."""
    output.replace(ESTIMATE, json.dumps(asdict(planned), indent=2).encode())


def read_planned(output: Output) -> PlannedTime | None:
    """What was expected when the job began; None where nothing was, or where it cannot be read."""
    with suppress(FileNotFoundError, RefusedError):
        return parse_json(output.read(ESTIMATE, MAX_BYTES), _PLANNED, output.uri(ESTIMATE))
    return None
