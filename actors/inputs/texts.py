"""Texts of the input as they are found: not all of them UTF-8, and some longer than any text should be.

A Parquet file of 600 bytes can hold ten megabytes of text in each of a million rows: the text once, in a
dictionary, and a million times its number. So dictionaries are judged before they are unfolded.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns.input_columns import TEXT_FIELDS, dense
from schemas.errors import RowError

MAX_PROMPT_BYTES = 65_536
MAX_NAME_BYTES = 4_096
"""Of ids, names, options and URIs; S3 keys and Linux paths are no longer either."""
MAX_KEPT_BYTES = 1 << 20
"""Of a text that is only copied."""
SHOWN_BYTES = 200
"""Of a text that is no good: what the output has in its place."""

Problems = dict[int, RowError]
"""By position in the batch."""


def most_bytes(field: str) -> int:
    """The longest text that a field may hold."""
    return MAX_PROMPT_BYTES if field in TEXT_FIELDS else MAX_NAME_BYTES


def is_text(arrow_type: pa.DataType) -> bool:
    """Whether a column holds texts, in a dictionary or not."""
    kind = dense(arrow_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def readable(array: pa.Array, name: str, most: int) -> tuple[pa.Array, Problems]:
    """The column with the beginning of each text that is no good in its place, and what is wrong with it."""
    if not pa.types.is_dictionary(array.type):
        return _mended(array.cast(pa.large_binary()), name, most)
    values, problems = _mended(array.dictionary.cast(pa.large_binary()), name, most)
    rows: Problems = {}
    if problems:
        entries = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(np.isin(entries, list(problems)))
        rows = {row: problems[int(entries[row])] for row in bad.tolist()}
    return values.take(array.indices), rows


def _mended(values: pa.Array, name: str, most: int) -> tuple[pa.Array, Problems]:
    long = _too_long(values, most)
    try:
        if not long:
            return values.cast(pa.large_string()).cast(pa.string()), {}
    except pa.ArrowInvalid:
        pass  # Then each is looked at alone.
    problems: Problems = {}
    texts: list[str | None] = []
    for row, value in enumerate(values):
        buffer = value.as_buffer()
        if buffer is None:
            texts.append(None)
            continue
        data = bytes(buffer[:SHOWN_BYTES] if row in long else buffer)
        try:
            if row in long:
                problems[row] = RowError(
                    "text_too_long", f"`{name}` has {buffer.size:,} bytes, of {most:,} at most"
                )
            texts.append(data.decode("utf-8", "replace" if row in long else "strict"))
        except UnicodeDecodeError as error:
            problems[row] = RowError(
                "invalid_text", f"`{name}` is no UTF-8: byte {error.start}, {error.reason}"
            )
            texts.append(data[:SHOWN_BYTES].decode("utf-8", "replace"))
    return pa.array(texts, pa.string()), problems


def _too_long(values: pa.Array, most: int) -> set[int]:
    long = pc.greater(pc.binary_length(values), most).fill_null(False)
    return set(np.flatnonzero(long.to_numpy(zero_copy_only=False)).tolist())


def unreadable(array: pa.Array, name: str, plain: pa.DataType) -> Problems:
    """Rows whose value Arrow itself calls damaged: lists of texts that are no UTF-8, times past midnight.

    `plain`: the array's type without dictionaries, of which each row has all the texts.
    """
    if _damage(array) is None:
        return {}
    said = ((row, _damage(array.take([row]).cast(plain))) for row in range(len(array)))
    return {row: _unreadable(name, why) for row, why in said if why is not None}


def _damage(array: pa.Array) -> str | None:
    """What is wrong, in Arrow's words."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        return str(error)
    return None


def _unreadable(name: str, why: str) -> RowError:
    if "UTF8" in why:
        return RowError("invalid_text", f"`{name}` holds what is no UTF-8 text")
    # Before it stands the way through lists and structs.
    value = why.rpartition("Invalid: ")[2]
    return RowError("invalid_value", f"`{name}` holds what its type does not allow: {value[:SHOWN_BYTES]}")


def without(array: pa.Array, problems: Mapping[int, RowError]) -> pa.Array:
    """The column with null in place of these rows' values."""
    if not problems:
        return array
    return array.take(pa.array([None if row in problems else row for row in range(len(array))], pa.int64()))
