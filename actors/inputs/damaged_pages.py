"""Damaged pages of a Parquet file, and the rows of a row group that they make unreadable.

Parquet's readers go through a column from the beginning of its row group, so nothing of that column can be
read between a damaged page and the next row group. The column is read row by row to find the first lost row.
The answer then follows from the file alone, wherever a reader began and whatever its batch size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import RowError
from schemas.wording.printable import escaped

MAX_REASON_CHARACTERS = 200
"""The longest part of Arrow's error that a message quotes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """The damage to a column in one row group: from its first row on, the column cannot be read."""

    num_readable: int
    """Rows of the row group before the damage."""
    problem: RowError
    """The error of every row that is lost."""


def is_damage(error: Exception) -> bool:
    """Whether the file itself is damaged. Errors of disks and stores have an errno, or are not Arrow's."""
    return isinstance(error, pa.ArrowException) or (isinstance(error, OSError) and error.errno is None)


def find_damage(
    parquet: pq.ParquetFile, group: int, column: str, max_rows: int, beat: Callable[[], None]
) -> Damage | None:
    """The damage to a column in a row group; None where the whole column can be read.

    `max_rows`: the largest batch that may be read at once. `beat` is called for each batch.
    """
    num_rows = parquet.metadata.row_group(group).num_rows
    reason = "it has fewer values than rows"
    for batch_size in (max_rows, 1):
        num_readable = 0
        try:
            for batch in _batches(parquet, group, column, batch_size):
                beat()
                num_readable += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            # Arrow quotes bytes of the file.
            reason = escaped(" ".join(str(error).split())[:MAX_REASON_CHARACTERS])
        if num_readable >= num_rows:
            return None
    return Damage(
        num_readable=num_readable,
        problem=RowError(
            "corrupt_page",
            f"column `{column}` of the input is damaged from row {num_readable} of row group {group} to the "
            f"group's end: {reason}",
        ),
    )


def read_around(
    parquet: pq.ParquetFile,
    group: int,
    column: str,
    batch_size: int,
    damage: Damage | None,
    beat: Callable[[], None],
) -> Iterator[pa.Array]:
    """A column of a row group in arrays of `batch_size` rows, with nulls in place of the lost rows.

    `beat` is called for each batch that was read.
    """
    num_rows = parquet.metadata.row_group(group).num_rows
    step, num_readable = (1, damage.num_readable) if damage else (batch_size, num_rows)
    readable = _columns_of(islice(_batches(parquet, group, column, step), num_readable), beat)
    lost = pa.nulls(num_rows - num_readable, _type_of(parquet.schema_arrow, column))
    return _in_steps(chain(readable, [lost]), batch_size)


def _columns_of(batches: Iterator[pa.RecordBatch], beat: Callable[[], None]) -> Iterator[pa.Array]:
    for batch in batches:
        beat()
        yield batch.column(0)


def _batches(parquet: pq.ParquetFile, group: int, column: str, batch_size: int) -> Iterator[pa.RecordBatch]:
    return iter(parquet.iter_batches(batch_size, row_groups=[group], columns=[column], use_threads=False))


def _type_of(schema: pa.Schema, column: str) -> pa.DataType:
    """The type of a column, or of a single leaf: `image.path` is read as a struct with that one field."""
    if column in schema.names:
        return schema.field(column).type
    name, _, leaf = column.partition(".")
    return pa.struct([schema.field(name).type.field(leaf)])


def _in_steps(arrays: Iterator[pa.Array], num_rows: int) -> Iterator[pa.Array]:
    waiting: list[pa.Array] = []
    num_waiting = 0
    for array in arrays:
        waiting.append(array)
        num_waiting += len(array)
        if num_waiting >= num_rows:
            waiting_rows = pa.concat_arrays(waiting)
            stop = len(waiting_rows) - len(waiting_rows) % num_rows
            yield from (waiting_rows.slice(start, num_rows) for start in range(0, stop, num_rows))
            waiting = [waiting_rows.slice(stop)]
            num_waiting -= stop
    rest = pa.concat_arrays(waiting)
    if len(rest):
        yield rest


def lost_row_problems(damages: Sequence[Damage], first_row: int, num_rows: int) -> dict[int, RowError]:
    """The errors of a batch's lost rows, by their position in the batch.

    The batch has `num_rows` rows and begins at row `first_row` of the row group.
    """
    return {
        row: damage.problem
        for damage in sorted(damages, key=lambda damage: -damage.num_readable)
        for row in range(max(0, damage.num_readable - first_row), num_rows)
    }
