"""Cells: the values of files without types of their own, such as CSV. The field that a cell fills decides
what its text means."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from schemas.columns.fields import FIELD_KINDS

_VENDOR, _NAME = "darkroom", "cell"
LINE_COLUMN = "_darkroom_line"
"""The column that has each row's line in the file that somebody wrote. Nobody reads it as a field."""
LINE_TYPE = pa.opaque(pa.int64(), "line", _VENDOR)
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan", re.IGNORECASE)
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def cell_type(arrow_type: pa.DataType) -> pa.DataType:
    """The type of a column of cells that are stored in this type: text, or what JSON has besides."""
    return pa.opaque(arrow_type, _NAME, _VENDOR)


def is_cell(arrow_type: pa.DataType) -> bool:
    """Whether a column has cells."""
    return (
        isinstance(arrow_type, pa.OpaqueType)
        and arrow_type.type_name == _NAME
        and arrow_type.vendor_name == _VENDOR
    )


def without_lines(schema: pa.Schema) -> pa.Schema:
    """The columns of a file besides that of its rows' lines."""
    return pa.schema([field for field in schema if field.type != LINE_TYPE])


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError
    number = int(text.partition(".")[0])
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return float(text)


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ValueError
    return _TRUTHS[text.lower()]


def _pair(text: str) -> list[int]:
    try:
        pair = json.loads(text)
    except RecursionError as error:
        raise ValueError from error
    if not isinstance(pair, list) or any(type(number) is not int for number in pair):
        raise ValueError
    return [_whole(str(number)) for number in pair]


_READERS: Mapping[str, tuple[pa.DataType, Callable[[str], Any]]] = {
    "whole number": (pa.int64(), _whole),
    "number": (pa.float64(), _number),
    "true or false": (pa.bool_(), _truth),
    "pair of whole numbers": (pa.list_(pa.int64()), _pair),
}
"""By kind of field, the type of its values and what reads one from a text: ValueError where it is none."""


def value_reader(field: str) -> tuple[pa.DataType, Callable[[str], Any]] | None:
    """The type of the field's values and what reads one from a text; None for a field of texts."""
    return _READERS.get(FIELD_KINDS[field])
