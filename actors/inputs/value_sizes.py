"""The size that values have outside their dictionaries, computed before they are taken out of them."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.inputs.texts import Problems, with_used_entries
from schemas.errors import RowError

Sizes = npt.NDArray[np.int64]


def size_problems(array: pa.Array, name: str, max_bytes: int, code: str) -> Problems:
    """The errors of rows whose value has more than `max_bytes`; `code` is their error code."""
    sizes = unfolded_bytes(array)
    return {
        row: RowError(code, f"`{name}` has {sizes[row]:,} bytes; at most {max_bytes:,} are allowed")
        for row in np.flatnonzero(sizes > max_bytes).tolist()
    }


def unfolded_bytes(array: pa.Array) -> Sizes:
    """The bytes of each value, except for a few of bookkeeping. Arrow's list views are not supported."""
    kind, types = array.type, pa.types
    if isinstance(array, pa.ExtensionArray):
        return unfolded_bytes(array.storage)
    if types.is_dictionary(kind):
        array = with_used_entries(array)
        entries = np.append(unfolded_bytes(array.dictionary), 0)
        indices = array.indices.cast(pa.int64()).fill_null(len(entries) - 1)
        return np.asarray(entries[indices.to_numpy(zero_copy_only=False)], np.int64)
    if types.is_struct(kind):
        leaves = (unfolded_bytes(array.field(index)) for index in range(kind.num_fields))
        return sum(leaves, start=np.zeros(len(array), np.int64))
    if types.is_fixed_size_list(kind):
        return _between(np.arange(array.offset, array.offset + len(array) + 1) * kind.list_size, array.values)
    if types.is_nested(kind):
        return _between(array.offsets.to_numpy(zero_copy_only=False).astype(np.int64), array.values)
    if (width := _width_bytes(kind)) is not None:
        return np.full(len(array), width, np.int64)
    lengths = pc.binary_length(array.cast(pa.large_binary())).fill_null(0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)


def _between(bounds: Sizes, values: pa.Array) -> Sizes:
    """The size of the values from each bound to the next. Long lists of numbers are not read for it."""
    if (width := _width_bytes(values.type)) is not None:
        return np.diff(bounds) * width
    return np.diff(np.concatenate([[0], np.cumsum(unfolded_bytes(values))])[bounds])


def _width_bytes(kind: pa.DataType) -> int | None:
    """The size of every value of a type; None where values differ in size."""
    if pa.types.is_null(kind):
        return 0
    if pa.types.is_dictionary(kind) or pa.types.is_nested(kind):
        return None
    try:
        return -(-int(kind.bit_width) // 8)
    except ValueError:
        return None
