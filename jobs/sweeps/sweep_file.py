"""The YAML of a sweep as types, read with errors that name the line and say how to fix it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator

from schemas.errors import SpecError
from schemas.spec.job_spec import FormatVersion
from schemas.spec.mistakes import described
from schemas.spec.strict_yaml import Location, read_yaml
from schemas.systems.parameters import StrictModel

MAX_RANGE = 1_000_000
"""The most values of one range."""

_Model = TypeVar("_Model", bound=BaseModel)


class RowsSpec(StrictModel):
    """The table whose rows are multiplied."""

    path: str | list[str] = Field(min_length=1)
    """Its files, as `input.path` of a spec has them."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Its columns by field, as `input.columns` of a spec has them."""


class RangeSpec(StrictModel):
    """Numbers at equal distances."""

    first: int | float = Field(alias="from")
    """The first number."""
    count: int = Field(ge=1, le=MAX_RANGE)
    """How many numbers there are."""
    step: int | float = 1
    """The distance from each number to the next."""


class SweepSpec(StrictModel):
    """What is multiplied."""

    version: FormatVersion
    """The version of the sweep's format."""
    rows: RowsSpec | None = None
    """A table, each of whose rows is multiplied. Its own columns are kept."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Fields that have one value in all rows."""
    product: dict[str, Any] = Field(default_factory=dict)
    """Fields with lists of values: every combination becomes a row, and the last list varies fastest."""
    zip: list[dict[str, Any]] = Field(default_factory=list)
    """Groups of fields whose lists are walked together: the first values of all, then the second, ..."""
    words: str | dict[str, list[str]] = "."
    """Where the words for `__NAME__` in prompts are: a folder of files NAME.txt, or the lists themselves. A
    list that is not here is NAME.txt beside the sweep."""
    choices: Literal["pick", "off"] = "pick"
    """pick: each row gets one of the choices in its prompts, such as {red|blue}; off: they are plain text."""

    @field_validator("rows", mode="before")
    @classmethod
    def _path_alone(cls, rows: object) -> object:
        if not isinstance(rows, (str, list, dict, type(None))):
            raise ValueError(f"must be a path such as prompts.txt, or a list of paths, not {rows}")
        return {"path": rows} if isinstance(rows, (str, list)) else rows

    @field_validator("zip", mode="before")
    @classmethod
    def _group_alone(cls, groups: object) -> object:
        return [groups] if isinstance(groups, dict) else groups


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFile:
    """A sweep, and where each of its values is written."""

    path: Path
    spec: SweepSpec
    lines: Mapping[Location, int]

    def source(self, *at: str | int) -> str:
        """The file and line of a value, as messages begin."""
        line = next((self.lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in self.lines), 1)
        return f"{self.path}:{line}"

    def error(self, at: Location, problem: str) -> SpecError:
        """The error about a value."""
        return SpecError(f"{self.source(*at)}: {'.'.join(map(str, at))}: {problem}")

    def checked(self, model: type[_Model], value: Any, at: Location) -> _Model:
        """The value as this type; SpecError where it does not fit."""
        try:
            return model.model_validate(value)
        except ValidationError as error:
            source: dict[Location, str] = {(): self.source(*at)}
            raise SpecError(described(error, value, source, str(self.path), model)) from error


def load_sweep(path: Path) -> SweepFile:
    """The sweep in a YAML file. SpecError, with a line for each mistake, where it is none."""
    value, lines = read_yaml(path)
    if not isinstance(value, dict):
        raise SpecError(f"{path}:1: a sweep is a mapping that begins with `version: 1`")
    try:
        spec = SweepSpec.model_validate(value)
    except ValidationError as error:
        sources = {at: f"{path}:{line}" for at, line in lines.items()}
        raise SpecError(described(error, value, sources, str(path), SweepSpec)) from error
    if not (spec.rows or spec.product or spec.zip):
        raise SpecError(
            f"{path}:1: nothing to multiply; give lists of values, such as product: {{seed: [0, 1, 2]}}, or "
            "a table of prompts, such as rows: prompts.txt"
        )
    if isinstance(value.get("zip"), dict):
        # One group may be written without a list.
        lines |= {("zip", 0, *at[1:]): line for at, line in lines.items() if at[:1] == ("zip",)}
    return SweepFile(path=path, spec=spec, lines=lines)
