"""The limit on the kept columns of one part."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from actors.inputs.input_file import RowBatch
from actors.inputs.value_sizes import unfolded_bytes
from actors.rows.row import Row
from schemas.errors import RowError
from schemas.wording.amounts import counted

MAX_KEPT_BYTES = 1 << 30
"""The most bytes that a part may have in its kept columns, counted once per image of each row.

A part is written from memory.
"""


def kept_bytes(batch: RowBatch, positions: Sequence[int]) -> list[int]:
    """For each row at these positions, the bytes of its values in all kept columns."""
    totals = np.zeros(len(positions), np.int64)
    for array in batch.keep.values():
        totals += unfolded_bytes(array)[positions]
    sizes: list[int] = totals.tolist()
    return sizes


class KeptCapacity:
    """The bytes of kept columns that a part can still take."""

    def __init__(self) -> None:
        self._left_bytes = MAX_KEPT_BYTES

    def fit(self, rows: Iterable[Row], sizes: Iterable[int]) -> Iterator[Row]:
        """The rows; those whose kept columns no longer fit fail, and lose their kept columns.

        `sizes`: the bytes of each row's kept columns, counted once.
        """
        for row, bytes_per_image in zip(rows, sizes, strict=True):
            size_bytes = bytes_per_image * row.num_images
            if size_bytes <= self._left_bytes:
                self._left_bytes -= size_bytes
                yield row
            else:
                yield _without_kept(row, size_bytes)


def _without_kept(row: Row, size_bytes: int) -> Row:
    message = (
        f"this row's columns of input.keep take {counted(size_bytes, 'byte')} in its part, which has no room "
        f"left for them: all rows of a part together may take {MAX_KEPT_BYTES:,}; lower batching.shard_rows, "
        "or keep fewer columns"
    )
    problem = row.problem or RowError("kept_too_large", message)
    return replace(row, keep={}, num_images=1, parameters={}, problem=problem)
