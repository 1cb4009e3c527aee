"""A row of an output as a line of JSON that darkroom takes as input, to be copied from the page."""

import json
from collections.abc import Mapping
from typing import Any

from actors.rows.routing import AnyRoute, ResolvedRoute
from schemas.columns.fields import TEXT_FIELDS

MAX_LINE = 20_000
"""Characters of a line. A longer one, whose prompt has many pages, cannot be copied."""


def row_line(route: AnyRoute, record: Mapping[str, Any]) -> str:
    """The row as a line of JSON lines, with all of its parameters; empty where it would be very long.

    Images of the input are not in it. The seed is that of the image, so the line gives this image alone.
    """
    names = ["row_id", "task", "model", "seed", *TEXT_FIELDS]
    if isinstance(route, ResolvedRoute):
        names += [name for name in route.defaults if name not in names]
    values = {name: _as_input(name, record.get(name)) for name in names}
    given = {name: value for name, value in values.items() if value not in (None, {}, [])}
    line = json.dumps(given, ensure_ascii=False, default=str)
    return line if len(line) <= MAX_LINE else ""


def _as_input(name: str, value: Any) -> Any:
    """The value of a column of the output as the input has it."""
    if name == "loras" and value is not None:
        return {each["name"]: each["weight"] for each in value}
    if name == "controls" and value is not None:
        return [
            {key: part for key, part in each.items() if key != "sha256" and part is not None}
            for each in value
        ]
    return value
