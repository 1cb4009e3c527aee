"""The axes of a sweep: fields with the lists of values that are multiplied."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any

import pyarrow as pa

from jobs.sweeps.field_values import FieldValues, as_cell, column_type, sweep_type
from jobs.sweeps.prompt_templates import WORD
from jobs.sweeps.sweep_file import RangeSpec, SweepFile, SweepSpec
from jobs.sweeps.value_names import value_names
from jobs.sweeps.word_lists import WordLists
from schemas.columns.fields import FIELD_KINDS
from schemas.spec.strict_yaml import Location
from schemas.wording.foreign_names import field_meant
from schemas.wording.nearest import did_you_mean
from schemas.wording.printable import shortened

_FIELDS = [field for field in FIELD_KINDS if field != "row_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptField:
    """A field, or a list of words, with its values along an axis."""

    name: str
    is_words: bool
    """Whether the values are words, for `__name__` in prompts, and not those of a field."""
    values: Sequence[Any]
    at: Location
    """Where they are in the sweep's file."""

    def column(self) -> pa.Array:
        """The values as rows have them, one for each position on the axis."""
        return _column(self.values, pa.string() if self.is_words else column_type(self.name))

    def sweep_column(self) -> pa.Array:
        """The values as the column has them that says which one a row has."""
        return _column(self.values, pa.string() if self.is_words else sweep_type(self.name))

    def names(self) -> pa.Array:
        """The values' names in ids."""
        return pa.array(value_names(self.name, self.values), pa.string())


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Fields whose values are walked together: one field of a product, or a group of `zip`."""

    fields: tuple[SweptField, ...]

    def __len__(self) -> int:
        return len(self.fields[0].values)


def _column(values: Iterable[Any], arrow_type: pa.DataType) -> pa.Array:
    return pa.array([as_cell(value, arrow_type) for value in values], arrow_type)


def sweep_axes(sweep: SweepFile, lists: WordLists) -> list[Axis]:
    """The axes of a sweep, the one that varies slowest first. SpecError for what cannot be swept."""
    axes = [
        Axis(fields=(_swept(sweep, lists, ("product", key), value),))
        for key, value in sweep.spec.product.items()
    ]
    for i, group in enumerate(sweep.spec.zip):
        fields = tuple(_swept(sweep, lists, ("zip", i, key), value) for key, value in group.items())
        _check_group(sweep, ("zip", i), fields)
        axes.append(Axis(fields=fields))
    _check_names(sweep, axes)
    for axis in axes:
        _refuse_repetition(sweep, axis)
    return axes


def set_columns(sweep: SweepFile) -> dict[str, pa.Array]:
    """The fields that have one value in all rows, each as a column of one row.

    SpecError for what is no value of its field.
    """
    for field, value in sweep.spec.set.items():
        at = ("set", field)
        _check_field(sweep, at)
        if isinstance(value, list) and FIELD_KINDS[field] not in ("pair of whole numbers", "controls"):
            raise sweep.error(at, f"has several values; to make rows of each of them, put {field} in product")
        _check_value(sweep, field, value, at)
    return {field: _column([value], column_type(field)) for field, value in sweep.spec.set.items()}


def _swept(sweep: SweepFile, lists: WordLists, at: Location, value: object) -> SweptField:
    key = str(at[-1])
    if word := WORD.fullmatch(key):
        if word[1] in FIELD_KINDS:
            raise sweep.error(at, "is the name of a field; give the list of words another one")
        return SweptField(name=word[1], is_words=True, values=_words(sweep, lists, at, value), at=at)
    _check_field(sweep, at)
    if isinstance(value, dict):
        values: Sequence[Any] = _range(sweep.checked(RangeSpec, value, at))
        # Its ends are checked, and its step by the second number.
        for number in (*values[:2], values[-1]):
            _check_value(sweep, key, number, at)
    elif isinstance(value, list) and value:
        values = value
        for i, each in enumerate(values):
            _check_value(sweep, key, each, (*at, i))
    else:
        raise sweep.error(
            at,
            "must be a list of values, or a range of numbers such as {from: 0, count: 5}, not "
            f"{shortened(json.dumps(value))}; one value for all rows belongs under set",
        )
    return SweptField(name=key, is_words=False, values=values, at=at)


def _words(sweep: SweepFile, lists: WordLists, at: Location, value: object) -> Sequence[str]:
    if value == "all":
        name = str(at[-1])
        return lists.texts(name.strip("_"), f"{sweep.source(*at)}: {name}")
    if isinstance(value, list) and value and all(isinstance(word, str) and word for word in value):
        return value
    raise sweep.error(at, f"must be `all`, or a list of words in quotes, not {shortened(json.dumps(value))}")


def _range(numbers: RangeSpec) -> list[int | float]:
    """The numbers of a range. Decimals, because 0.1 + 0.2 is not 0.3 in binary."""
    first, step = Decimal(str(numbers.first)), Decimal(str(numbers.step))
    values = (first + i * step for i in range(numbers.count))
    return [int(value) if value == value.to_integral_value() else float(value) for value in values]


def _check_field(sweep: SweepFile, at: Location) -> None:
    field = str(at[-1])
    if field in _FIELDS:
        return
    if field == "row_id":
        raise sweep.error(at, "the ids are made of the values; give a table under `rows` with ids of its own")
    if meant := field_meant(field, _FIELDS):
        raise sweep.error(at, f"unknown field; darkroom calls it `{meant}`")
    if field in SweepSpec.model_fields:
        raise sweep.error(at, f"unknown field; the key `{field}` belongs at the top level")
    hint = did_you_mean(field, _FIELDS) or f"; fields are {', '.join(_FIELDS)}"
    raise sweep.error(at, f"unknown field{hint}")


def _check_value(sweep: SweepFile, field: str, value: object, at: Location) -> None:
    sweep.checked(FieldValues, {field: value}, at)


def _check_group(sweep: SweepFile, at: Location, fields: Sequence[SweptField]) -> None:
    if not fields:
        raise sweep.error(at, "the group is empty; give it lists of values to walk together")
    if len({len(field.values) for field in fields}) > 1:
        lengths = ", ".join(f"{field.name} {len(field.values):,}" for field in fields)
        raise sweep.error(
            at,
            f"lists that are walked together must have the same number of values, and these have: {lengths}",
        )


def _check_names(sweep: SweepFile, axes: Sequence[Axis]) -> None:
    """Raise SpecError for a field that has its values from two keys."""
    seen: dict[str, Location] = {field: ("set", field) for field in sweep.spec.set}
    for field in chain.from_iterable(axis.fields for axis in axes):
        if field.name in seen:
            other = ".".join(map(str, seen[field.name][:-1]))
            raise sweep.error(field.at, f"has values under {other} too; keep one of the two")
        seen[field.name] = field.at


def _refuse_repetition(sweep: SweepFile, axis: Axis) -> None:
    """Raise SpecError for two positions with the same values, because their rows would have the same id."""
    seen = set()
    for i, position in enumerate(_positions(axis)):
        if position in seen:
            (first, *others) = axis.fields
            shown = shortened(json.dumps(first.values[i], ensure_ascii=False))
            raise sweep.error((*first.at, i), f"{shown} is in the list{'s' if others else ''} twice")
        seen.add(position)


def _positions(axis: Axis) -> Iterator[tuple[str, ...]]:
    # 2 and 2.0 are the same number of a field.
    return zip(*(map(str, field.column().to_pylist()) for field in axis.fields), strict=True)
