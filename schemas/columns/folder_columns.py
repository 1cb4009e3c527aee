"""Columns that the names of a file's folders give, as Hive, Spark and Athena write them: `seed=1`."""

from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow as pa

from schemas.columns.fields import FIELD_KINDS

NULL = "__HIVE_DEFAULT_PARTITION__"
"""The value in a folder's name that stands for null."""

_TYPES: dict[str, pa.DataType] = {"whole number": pa.int64(), "number": pa.float64()}
"""The type of a folder's value by the kind of the field that it fills; text for the other kinds."""


def folder_columns(uri: str) -> dict[str, str | None]:
    """The columns of a file's folders, outermost first, each with its value; None for null."""
    pairs = (name.partition("=") for name in uri.split("/")[:-1])
    return {
        unquote(key): None if value == NULL else unquote(value) for key, sign, value in pairs if key and sign
    }


def common_folder_type(values: Iterable[str | None]) -> pa.DataType:
    """int64 if all values are whole numbers as a number is usually written, and else text."""
    return pa.int64() if all(value is None or _is_whole(value) for value in values) else pa.string()


def _is_whole(value: str) -> bool:
    # `007` is a name: as a number it would lose its zeros.
    return value.removeprefix("-").isdecimal() and value.isascii() and str(int(value)) == value


def folder_type(field: str) -> pa.DataType:
    """The type in which a folder's value fills a field."""
    return _TYPES.get(FIELD_KINDS[field], pa.string())


def folder_array(value: str | None, arrow_type: pa.DataType, num_rows: int) -> pa.Array:
    """The column of a folder's value; ArrowInvalid if it is not of this type."""
    return pa.repeat(pa.scalar(value, pa.string()).cast(arrow_type), num_rows)
