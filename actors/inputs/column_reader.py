"""The columns of one Parquet file as pyarrow decodes them: in bounded batches, and around damaged pages."""

from collections.abc import Callable, Collection, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.inputs.damaged_pages import Damage, find_damage, is_damage, lost_row_problems, read_around
from actors.inputs.dictionaries import Dictionaries, Reading, open_parquet
from actors.inputs.texts import Problems

BATCH_ROWS = 16_384
"""Rows of small columns that are read together: enough for numpy to be fast, and only a few megabytes."""

_DAMAGE_ROWS = 1024
"""Rows that are read together to find damage."""


class ColumnReader:
    """Reads columns of an open Parquet file. Close it when it is done."""

    def __init__(
        self, source: BinaryIO, footer: pq.FileMetaData, beat: Callable[[], None], whole: Collection[str]
    ) -> None:
        """`beat` is called for each batch that was read. `whole`: the columns that may not be damaged."""
        self.footer = footer
        self._source = source
        self._beat = beat
        self._whole = whole
        self._names = footer.schema.to_arrow_schema().names
        self._dictionaries = Dictionaries(source, footer)
        self._parquet = open_parquet(source, footer, [])
        sizes = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._damages: dict[tuple[int, str], Damage | None] = {}

    def close(self) -> None:
        """Close the Parquet reader and the file."""
        self._parquet.close(force=True)
        self._source.close()

    def first_row_of(self, group: int) -> int:
        """The number of a row group's first row in the file, from 0."""
        return int(self._starts[group])

    def row_group_of(self, row: int) -> int:
        """The row group that holds a row."""
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def batches(
        self, first_group: int, columns: list[str], max_rows: int
    ) -> Iterator[tuple[pa.RecordBatch, Problems]]:
        """(batch, problems) for each batch of at most `max_rows` rows, from a row group on.

        The problems are those of rows that are lost to damaged pages, by position in the batch.
        """
        row = int(self._starts[first_group])
        while row < self.footer.num_rows:
            reading = self._dictionaries.reading(self.row_group_of(row), columns, max_rows)
            end = int(self._starts[reading.groups.stop])
            try:
                for batch in self._iterate(reading, columns):
                    yield batch, {}
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                if not is_damage(error):
                    raise
            if row < end:
                group = self.row_group_of(row)
                yield from self._around_damage(group, columns, reading, row - int(self._starts[group]))
                row = int(self._starts[group + 1])

    def _iterate(self, reading: Reading, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for batch in self._parquet_for(reading).iter_batches(
            reading.num_rows, row_groups=[*reading.groups], columns=columns, use_threads=False
        ):
            self._beat()
            yield batch

    def _parquet_for(self, reading: Reading) -> pq.ParquetFile:
        if not reading.dictionaries:
            return self._parquet
        return open_parquet(self._source, self.footer, reading.dictionaries)

    def _around_damage(
        self, group: int, columns: list[str], reading: Reading, first_row: int
    ) -> Iterator[tuple[pa.RecordBatch, Problems]]:
        """(batch, problems) for the rows of a damaged row group from its `first_row` on.

        Each column is read by itself, as far as its own damage allows.
        """
        damages = {column: self._damage(group, column) for column in columns}
        parquet = self._parquet_for(reading)
        arrays = [
            read_around(parquet, group, column, reading.num_rows, damages[column], self._beat)
            for column in columns
        ]
        damaged = [damage for damage in damages.values() if damage]
        names = [column if column in self._names else column.partition(".")[0] for column in columns]
        done = 0
        for step in zip(*arrays, strict=True):
            batch = pa.RecordBatch.from_arrays(list(step), names).slice(max(0, first_row - done))
            done += len(step[0])
            if batch.num_rows:
                yield batch, lost_row_problems(damaged, done - batch.num_rows, batch.num_rows)

    def _damage(self, group: int, column: str) -> Damage | None:
        if (group, column) not in self._damages:
            reading = self._dictionaries.reading(group, [column], _DAMAGE_ROWS)
            parquet = self._parquet_for(reading)
            self._damages[group, column] = find_damage(parquet, group, column, reading.num_rows, self._beat)
        damage = self._damages[group, column]
        if damage and column in self._whole:
            raise pa.ArrowInvalid(damage.problem.message)
        return damage

    def count_nulls(self, leaf: str) -> int:
        """The number of rows in which the leaf's column is null, counted by reading the leaf."""
        group, total = 0, 0
        while group < self.footer.num_row_groups:
            reading = self._dictionaries.reading(group, [leaf], BATCH_ROWS)
            total += sum(batch.column(0).null_count for batch in self._iterate(reading, [leaf]))
            group = reading.groups.stop
        return total
