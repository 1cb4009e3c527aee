"""The columns of input.keep, and how much of them one part can hold."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from actors.inputs.input_file import RowBatch
from actors.inputs.value_sizes import unfolded_bytes
from actors.rows.row import Row
from schemas.errors import RowError

MAX_KEPT_BYTES = 1 << 30
"""Of all that a shard's rows keep, as often as their part has it: a part is written from memory."""


def kept_bytes(batch: RowBatch, wanted: Sequence[int]) -> list[int]:
    """What the rows at these positions keep, each once."""
    sizes = np.zeros(len(wanted), np.int64)
    for array in batch.keep.values():
        sizes += unfolded_bytes(array)[wanted]
    found: list[int] = sizes.tolist()
    return found


class KeptRoom:
    """Room in a part for what its rows keep."""

    def __init__(self) -> None:
        self._left_bytes = MAX_KEPT_BYTES

    def fit(self, rows: Iterable[Row], sizes: Iterable[int]) -> Iterator[Row]:
        """The rows, `sizes` being what each keeps; those for which there is no room fail and keep nothing."""
        for row, once in zip(rows, sizes, strict=True):
            size_bytes = once * row.num_images
            if size_bytes <= self._left_bytes:
                self._left_bytes -= size_bytes
                yield row
            else:
                yield _without_kept(row, size_bytes)


def _without_kept(row: Row, size_bytes: int) -> Row:
    said = (
        f"the columns of input.keep have {size_bytes:,} bytes here, and there is room for "
        f"{MAX_KEPT_BYTES:,} of all rows of a part; lower batching.shard_rows, or keep fewer columns"
    )
    problem = row.problem or RowError("kept_too_large", said)
    return replace(row, keep={}, num_images=1, parameters={}, problem=problem)
