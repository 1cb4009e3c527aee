"""Pages of a Parquet file that cannot be read: which rows of a row group they take with them.

Parquet's readers go through a column from the beginning of its row group, so behind a damaged page nothing
of that column can be had until the next row group. Where the damage begins is found by reading the column
row by row: the answer then follows from the file alone, wherever and in what steps somebody was reading.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import RowError
from schemas.wording.printable import printable

MAX_SAID = 200
"""Of what Arrow says about the damage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Where a column of a row group cannot be read any more."""

    num_readable: int
    """Rows before it."""
    problem: RowError


def is_damage(error: Exception) -> bool:
    """Whether it is the file's fault: errors of disks and stores have a number, or are none of Arrow's."""
    return isinstance(error, pa.ArrowException) or (isinstance(error, OSError) and error.errno is None)


def find_damage(parquet: pq.ParquetFile, group: int, column: str, most_rows: int) -> Damage | None:
    """The first row that a damaged page takes; None where the whole column can be read.

    `most_rows`: of a batch.
    """
    num_rows = parquet.metadata.row_group(group).num_rows
    said = "it has fewer values than rows"
    for batch_size in (most_rows, 1):
        num_readable = 0
        try:
            for batch in _batches(parquet, group, column, batch_size):
                num_readable += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            said = printable(
                " ".join(str(error).split())[:MAX_SAID]
            )  # Arrow quotes what it found in the file.
        if num_readable >= num_rows:
            return None
    return Damage(
        num_readable=num_readable,
        problem=RowError(
            "corrupt_page",
            f"column `{column}` of the input is damaged from row {num_readable} of row group {group} to the "
            f"group's end: {said}",
        ),
    )


def read_around(
    parquet: pq.ParquetFile, group: int, column: str, batch_size: int, damage: Damage | None
) -> Iterator[pa.Array]:
    """A column of a row group in arrays of `batch_size` rows, with nulls where it cannot be read."""
    num_rows = parquet.metadata.row_group(group).num_rows
    step, num_readable = (1, damage.num_readable) if damage else (batch_size, num_rows)
    readable = (batch.column(0) for batch in islice(_batches(parquet, group, column, step), num_readable))
    lost = pa.nulls(num_rows - num_readable, _type_of(parquet.schema_arrow, column))
    return _in_steps(chain(readable, [lost]), batch_size)


def _batches(parquet: pq.ParquetFile, group: int, column: str, batch_size: int) -> Iterator[pa.RecordBatch]:
    return iter(parquet.iter_batches(batch_size, row_groups=[group], columns=[column], use_threads=False))


def _type_of(schema: pa.Schema, column: str) -> pa.DataType:
    """Of a column, or of a struct's one leaf: `image.path` is read as a struct of that alone."""
    if column in schema.names:
        return schema.field(column).type
    name, _, leaf = column.partition(".")
    return pa.struct([schema.field(name).type.field(leaf)])


def _in_steps(arrays: Iterator[pa.Array], num_rows: int) -> Iterator[pa.Array]:
    waiting: list[pa.Array] = []
    for array in arrays:
        waiting.append(array)
        if sum(map(len, waiting)) >= num_rows:
            waiting_rows = pa.concat_arrays(waiting)
            whole = len(waiting_rows) - len(waiting_rows) % num_rows
            yield from (waiting_rows.slice(start, num_rows) for start in range(0, whole, num_rows))
            waiting = [waiting_rows.slice(whole)]
    rest = pa.concat_arrays(waiting)
    if len(rest):
        yield rest


def lost_rows(damages: Sequence[Damage], first_row: int, num_rows: int) -> dict[int, RowError]:
    """By their place in a batch that begins at the group's `first_row`, the rows that are lost."""
    return {
        place: damage.problem
        for damage in sorted(damages, key=lambda damage: -damage.num_readable)
        for place in range(max(0, damage.num_readable - first_row), num_rows)
    }
