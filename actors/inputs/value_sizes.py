"""How large values are once they are out of their dictionaries, seen before they are taken out."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.inputs.texts import Problems
from schemas.errors import RowError

Sizes = npt.NDArray[np.int64]


def too_large(array: pa.Array, name: str, most: int, code: str) -> Problems:
    """Rows whose value has more than `most` bytes."""
    sizes = unfolded_bytes(array)
    return {
        row: RowError(code, f"`{name}` has {sizes[row]:,} bytes, of {most:,} at most")
        for row in np.flatnonzero(sizes > most).tolist()
    }


def unfolded_bytes(array: pa.Array) -> Sizes:
    """Of each value, but for a few bytes of bookkeeping. The parts of Arrow's list views cannot be told."""
    kind, types = array.type, pa.types
    if isinstance(array, pa.ExtensionArray):
        return unfolded_bytes(array.storage)
    if types.is_dictionary(kind):
        entries = np.append(unfolded_bytes(array.dictionary), 0)
        indices = array.indices.cast(pa.int64()).fill_null(len(entries) - 1)
        return np.asarray(entries[indices.to_numpy(zero_copy_only=False)], np.int64)
    if types.is_struct(kind):
        leaves = (unfolded_bytes(array.field(place)) for place in range(kind.num_fields))
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
    """Of the values from each bound to the next; lists of numbers can be long, so those are not looked at."""
    if (width := _width_bytes(values.type)) is not None:
        return np.diff(bounds) * width
    return np.diff(np.concatenate([[0], np.cumsum(unfolded_bytes(values))])[bounds])


def _width_bytes(kind: pa.DataType) -> int | None:
    """None where values differ in it."""
    if pa.types.is_null(kind):
        return 0
    if pa.types.is_dictionary(kind) or pa.types.is_nested(kind):
        return None
    try:
        return -(-int(kind.bit_width) // 8)
    except ValueError:
        return None
