"""One Parquet file of the input, read in bounded steps: its columns under darkroom's names and types."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actors.inputs.batch_sizes import dictionary_leaves, fitting, rebatched
from actors.inputs.damaged_pages import Damage, find_damage, is_damage, lost_rows, read_around
from actors.inputs.texts import Problems
from actors.inputs.values import as_kept, as_kind, is_present, presence
from schemas.columns.input_columns import FIELD_KINDS, IMAGE_FIELDS, TEXT_FIELDS, ColumnMap
from schemas.errors import RowError

BATCH_ROWS = 16_384
"""Rows whose routing columns are looked at together: large enough for numpy, a few megabytes."""

_STREAM_BYTES = 1 << 20
"""Read this much of a column chunk at a time, not the chunk whole: row groups can be gigabytes."""

_DAMAGE_ROWS = 1024
"""Read together where damage is looked for."""

_PLACING = ("row_id", "task", "model")
"""Fields without which a row has no name or no place to go: a file with damage there cannot be planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBatch:
    """Some neighbouring rows of a file."""

    first_row: int
    """The file's row number, from 0, of the batch's first row."""
    num_rows: int
    fields: Mapping[str, pa.Array]
    """Fields by darkroom's names; images as HF structs. A field the input lacks is absent."""
    present: Mapping[str, npt.NDArray[np.bool_]]
    """For each image field of the input, whether the row has one."""
    keep: Mapping[str, pa.Array]
    """Columns that go to the output as they are, perhaps still in their dictionaries."""
    problems: Mapping[int, RowError]
    """By position in the batch, rows with a text that cannot be read; the batch has its beginning instead."""


class InputFile:
    """An open Parquet file; close it, or use it in a `with`."""

    def __init__(self, source: BinaryIO, columns: ColumnMap) -> None:
        self._source = source
        self._columns = columns
        footer = pq.read_metadata(source)
        self._types = footer.schema.to_arrow_schema()
        self._dictionaries = dictionary_leaves(footer, columns.columns())
        self._parquet = pq.ParquetFile(
            source,
            metadata=footer,
            read_dictionary=self._dictionaries,
            buffer_size=_STREAM_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
        sizes = [self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._damages: dict[tuple[int, str], Damage | None] = {}

    def __enter__(self) -> "InputFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file handle back."""
        self._parquet.close(force=True)
        self._source.close()

    @property
    def metadata(self) -> pq.FileMetaData:
        """The footer."""
        return self._parquet.metadata

    def row_group_of(self, row: int) -> int:
        """The row group that holds a row."""
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def read_routing(self, *, with_ids: bool = False, batch_size: int = BATCH_ROWS) -> Iterator[RowBatch]:
        """All rows, with nothing but the fields that say where a row goes (and what it is called)."""
        fields = ("row_id", "task", "model") if with_ids else ("task", "model")
        return self._read(0, self._routing_columns(fields), batch_size)

    def read_ids(self) -> Iterator[RowBatch]:
        """All rows, with their ids alone; only where the input has some."""
        return self._read(0, [self._columns.fields["row_id"]], BATCH_ROWS)

    def read_for_checks(self, batch_size: int = BATCH_ROWS) -> Iterator[RowBatch]:
        """All rows, without pictures and without texts that the footer's statistics vouch for."""
        fields = [field for field in FIELD_KINDS if field not in ("row_id", "negative_prompt")]
        return self._read(0, self._routing_columns(fields), batch_size, with_texts=False)

    def read_rows(self, first_row: int, batch_size: int = 64) -> Iterator[RowBatch]:
        """Every needed column from the row group of `first_row` on."""
        return self._read(self.row_group_of(first_row), self._columns.columns(), batch_size)

    def row_ids(self, rows: Sequence[int]) -> list[str]:
        """The ids of some rows, for a message."""
        column = self._columns.fields.get("row_id")
        if column is None:
            return [""] * len(rows)
        found: dict[int, str] = {}
        by_group: defaultdict[int, set[int]] = defaultdict(set)
        for row in rows:
            by_group[self.row_group_of(row)].add(row)
        for group, mine in sorted(by_group.items()):
            for batch in self._read(group, [column], BATCH_ROWS):
                here = {row for row in mine if batch.first_row <= row < batch.first_row + batch.num_rows}
                ids = batch.fields["row_id"]
                found |= {row: str(ids[row - batch.first_row].as_py()) for row in here}
                if mine <= found.keys():
                    break
        return [found[row] for row in rows]

    def num_nulls(self, field: str) -> int:
        """How many rows have no value in this field; the column is read where the footer does not say."""
        column = self._columns.fields[field]
        told = self._null_count(column)
        if told is not None:
            return told
        return self._count_nulls(column)

    def _routing_columns(self, fields: Sequence[str]) -> list[str]:
        wanted = []
        for field in fields:
            column = self._columns.fields.get(field)
            if column is None:
                continue
            if field in IMAGE_FIELDS:
                wanted += self._presence_column(column)
            elif field != "prompt" or self._null_count(column) != 0:
                wanted.append(column)
        return wanted

    def _presence_column(self, column: str) -> list[str]:
        """What to read to know whether a picture is there, without reading the picture."""
        if not pa.types.is_struct(self._types.field(column).type):
            return [column] if self._null_count(column) != 0 else []
        if self._null_count(f"{column}.bytes") == 0:
            return []
        return [column] if self._has_hollow(column) else [f"{column}.path"]

    def _has_hollow(self, column: str) -> bool:
        """Whether a struct may be there with nothing in it, so that only reading the bytes tells which.

        A footer without statistics does not say; a worker then finds it.
        """
        no_bytes, no_path = self._null_count(f"{column}.bytes"), self._null_count(f"{column}.path")
        if no_bytes is None or not no_path:
            return False
        try:
            absent = self._count_nulls(f"{column}.path")
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            return True
        return no_bytes > absent and no_path > absent

    def _count_nulls(self, leaf: str) -> int:
        """Rows without the column that the leaf is part of."""
        batches = self._parquet.iter_batches(
            self._fitting(BATCH_ROWS, [leaf]), columns=[leaf], use_threads=False
        )
        return sum(batch.column(0).null_count for batch in batches)

    def _null_count(self, leaf: str) -> int | None:
        total = 0
        for group in range(self.metadata.num_row_groups):
            chunks = self.metadata.row_group(group)
            chunk = next(
                (
                    chunks.column(i)
                    for i in range(chunks.num_columns)
                    if chunks.column(i).path_in_schema == leaf
                ),
                None,
            )
            if chunk is None or chunk.statistics is None or not chunk.statistics.has_null_count:
                return None
            total += chunk.statistics.null_count
        return total

    def _read(
        self, first_group: int, columns: list[str], batch_size: int, *, with_texts: bool = True
    ) -> Iterator[RowBatch]:
        row = int(self._starts[first_group])
        if not columns:
            yield from self._empty_batches(row, batch_size)
            return
        feared = self._batches(first_group, columns, self._fitting(batch_size, columns))
        for batch, lost in rebatched(feared, batch_size):
            yield self._named(batch, row, with_texts, lost)
            row += batch.num_rows

    def _batches(
        self, first_group: int, columns: list[str], batch_size: int
    ) -> Iterator[tuple[pa.RecordBatch, Problems]]:
        """Batches, and which of their rows are lost to damaged pages."""
        row, end = int(self._starts[first_group]), self.metadata.num_rows
        while row < end:
            group = self.row_group_of(row)
            rest = list(range(group, self.metadata.num_row_groups))
            try:
                for batch in self._parquet.iter_batches(
                    batch_size, row_groups=rest, columns=columns, use_threads=False
                ):
                    yield batch, {}
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                if not is_damage(error):
                    raise
            if row < end:
                group = self.row_group_of(row)
                yield from self._around_damage(group, columns, batch_size, row - int(self._starts[group]))
                row = int(self._starts[group + 1])

    def _around_damage(
        self, group: int, columns: list[str], batch_size: int, first_row: int
    ) -> Iterator[tuple[pa.RecordBatch, Problems]]:
        """The rows of a row group from its `first_row` on, column by column."""
        damages = {column: self._damage(group, column) for column in columns}
        arrays = [
            read_around(self._parquet, group, column, batch_size, damages[column]) for column in columns
        ]
        found = [damage for damage in damages.values() if damage]
        names = [column if column in self._types.names else column.partition(".")[0] for column in columns]
        done = 0
        for step in zip(*arrays, strict=True):
            batch = pa.RecordBatch.from_arrays(list(step), names).slice(max(0, first_row - done))
            done += len(step[0])
            if batch.num_rows:
                yield batch, lost_rows(found, done - batch.num_rows, batch.num_rows)

    def _damage(self, group: int, column: str) -> Damage | None:
        if (group, column) not in self._damages:
            most_rows = self._fitting(_DAMAGE_ROWS, [column])
            self._damages[group, column] = find_damage(self._parquet, group, column, most_rows)
        damage = self._damages[group, column]
        if damage and column in map(self._columns.fields.get, _PLACING):
            raise pa.ArrowInvalid(damage.problem.message)
        return damage

    def _fitting(self, most_rows: int, columns: list[str]) -> int:
        return fitting(self.metadata, most_rows, columns, self._dictionaries)

    def _empty_batches(self, row: int, batch_size: int) -> Iterator[RowBatch]:
        while row < self.metadata.num_rows:
            num_rows = min(batch_size, self.metadata.num_rows - row)
            present = {field: np.ones(num_rows, dtype=bool) for field in self._image_fields()}
            yield RowBatch(first_row=row, num_rows=num_rows, fields={}, present=present, keep={}, problems={})
            row += num_rows

    def _image_fields(self) -> list[str]:
        return [field for field in IMAGE_FIELDS if field in self._columns.fields]

    def _named(self, batch: pa.RecordBatch, first_row: int, with_texts: bool, lost: Problems) -> RowBatch:
        arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        problems: Problems = {}
        fields = {}
        for name, column in self._columns.fields.items():
            if column in arrays and name in TEXT_FIELDS and not with_texts:
                fields[name] = presence(arrays[column])
            elif column in arrays:
                fields[name], wrong = as_kind(arrays[column], name, self._types.field(column).type)
                problems = wrong | problems
        present = {
            field: is_present(fields[field]) if field in fields else np.ones(batch.num_rows, dtype=bool)
            for field in self._image_fields()
        }
        keep = {}
        for name in self._columns.keep:
            if name in arrays:
                keep[name], wrong = as_kept(arrays[name], name, self._types.field(name).type)
                problems = wrong | problems
        return RowBatch(
            first_row=first_row,
            num_rows=batch.num_rows,
            fields=fields,
            present=present,
            keep=keep,
            problems=problems | lost,
        )
