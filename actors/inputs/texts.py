"""Texts of the input, which can be other than UTF-8, or longer than any text should be.

A Parquet file of 600 bytes can have ten megabytes of text in each of a million rows: the text once, in a
dictionary, and a million references to it. So dictionaries are checked before they are unfolded.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns.column_types import dense
from schemas.columns.fields import TEXT_FIELDS
from schemas.errors import RowError

MAX_PROMPT_BYTES = 65_536
MAX_NAME_BYTES = 4_096
"""The longest id, name, options text or URI. No S3 key and no Linux path is longer."""
MAX_KEPT_BYTES = 1 << 20
"""The longest text in a kept column."""
SHOWN_BYTES = 200
"""How much the output and messages have of a text that is too long or not UTF-8."""

Problems = dict[int, RowError]
"""The errors of a batch's rows, by position in the batch."""


def max_text_bytes(field: str) -> int:
    """The length of the longest text that a field may have."""
    return MAX_PROMPT_BYTES if field in TEXT_FIELDS else MAX_NAME_BYTES


def is_text(arrow_type: pa.DataType) -> bool:
    """Whether a column has texts, in a dictionary or not."""
    kind = dense(arrow_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def texts_and_problems(array: pa.Array, name: str, max_bytes: int) -> tuple[pa.Array, Problems]:
    """(texts, problems) of a column: a text that is too long or not UTF-8 is replaced by its beginning.

    `name`: the column as messages call it.
    """
    if not pa.types.is_dictionary(array.type):
        return _decoded(array.cast(pa.large_binary()), name, max_bytes)
    array = with_used_entries(array)
    values, problems = _decoded(array.dictionary.cast(pa.large_binary()), name, max_bytes)
    rows: Problems = {}
    if problems:
        entries = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(np.isin(entries, list(problems)))
        rows = {row: problems[int(entries[row])] for row in bad.tolist()}
    return values.take(array.indices), rows


def with_used_entries(array: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same values, in a dictionary without the entries that no row refers to.

    A batch has the dictionary of its whole row group. To judge all of it again in each batch would take
    longer than everything else.
    """
    if len(array.dictionary) <= len(array):
        return array
    used = array.indices.unique().drop_null()
    entries = pc.index_in(array.indices, used)
    return pa.DictionaryArray.from_arrays(entries, array.dictionary.take(used))


def _decoded(values: pa.Array, name: str, max_bytes: int) -> tuple[pa.Array, Problems]:
    too_long = _too_long_rows(values, max_bytes)
    try:
        if not too_long:
            return values.cast(pa.large_string()).cast(pa.string()), {}
    except pa.ArrowInvalid:
        pass  # Some text is not UTF-8, so each is decoded alone.
    problems: Problems = {}
    texts: list[str | None] = []
    for row, value in enumerate(values):
        buffer = value.as_buffer()
        if buffer is None:
            texts.append(None)
            continue
        data = bytes(buffer[:SHOWN_BYTES] if row in too_long else buffer)
        try:
            if row in too_long:
                problems[row] = RowError(
                    "text_too_long", f"`{name}` has {buffer.size:,} bytes; at most {max_bytes:,} are allowed"
                )
            texts.append(data.decode("utf-8", "replace" if row in too_long else "strict"))
        except UnicodeDecodeError as error:
            problems[row] = RowError(
                "invalid_text", f"`{name}` is not UTF-8: byte {error.start}, {error.reason}"
            )
            texts.append(data[:SHOWN_BYTES].decode("utf-8", "replace"))
    return pa.array(texts, pa.string()), problems


def _too_long_rows(values: pa.Array, max_bytes: int) -> set[int]:
    too_long = pc.greater(pc.binary_length(values), max_bytes).fill_null(False)
    return set(np.flatnonzero(too_long.to_numpy(zero_copy_only=False)).tolist())


def invalid_value_problems(array: pa.Array, name: str, plain: pa.DataType) -> Problems:
    """The errors of rows whose value Arrow calls invalid: lists of texts other than UTF-8, times past
    midnight.

    `plain`: the array's type without dictionaries. One row of a dictionary array has all of its texts, so a
    row's own texts can only be checked in this type.
    """
    if _validation_error(array) is None:
        return {}
    errors = ((row, _validation_error(array.take([row]).cast(plain))) for row in range(len(array)))
    return {row: _invalid_value(name, error) for row, error in errors if error is not None}


def _validation_error(array: pa.Array) -> str | None:
    """Arrow's message on what is invalid in the array; None where all of it is valid."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        return str(error)
    return None


def _invalid_value(name: str, error: str) -> RowError:
    if "UTF8" in error:
        return RowError("invalid_text", f"`{name}` has a text that is not UTF-8")
    # Arrow's message begins with the path through lists and structs.
    reason = error.rpartition("Invalid: ")[2]
    return RowError(
        "invalid_value", f"`{name}` has a value that its type does not allow: {reason[:SHOWN_BYTES]}"
    )


def nulled(array: pa.Array, problems: Mapping[int, RowError]) -> pa.Array:
    """The column with null in place of the values of rows that have a problem."""
    if not problems:
        return array
    return array.take(pa.array([None if row in problems else row for row in range(len(array))], pa.int64()))
