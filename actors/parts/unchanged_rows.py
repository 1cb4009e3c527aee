"""The rows of a part that stay as they are when `darkroom retry` generates others again."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from actors.parts.part import Record
from actors.rows.row import Row
from schemas.errors import RefusedError
from schemas.wording.amounts import counted


def unchanged_records(
    part: BinaryIO, rows: Sequence[Row], retried_codes: Collection[str], kept_columns: Collection[str]
) -> Mapping[int, list[Record]]:
    """The records of rows that stay, by position in the shard; RefusedError if the part has other rows.

    All rows stay except those that failed with one of `retried_codes`. If this is empty, every code counts.
    """
    records = [*_records(part, kept_columns)]
    unchanged: dict[int, list[Record]] = {}
    start = 0
    for row in rows:
        row_records = records[start : start + _num_records(records, start, row)]
        if not row_records or any(record["row_id"] != row.row_id for record in row_records):
            raise RefusedError(f"the part does not have row {row.row_id!r} where its shard has it")
        start += len(row_records)
        failed = row_records[0]["status"] == "failed"
        if not failed or (retried_codes and row_records[0]["error_code"] not in retried_codes):
            unchanged[row.index] = row_records
    if start != len(records):
        raise RefusedError(f"the part has {counted(len(records) - start, 'more row')} than its shard")
    return unchanged


def _records(part: BinaryIO, kept_columns: Collection[str]) -> Iterator[Record]:
    """The records of a part, of which one row group at a time is in memory a second time."""
    with pq.ParquetFile(part, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            columns = [
                _slices(column) if name in kept_columns else column.to_pylist()
                for name, column in zip(table.column_names, table.columns, strict=True)
            ]
            for values in zip(*columns, strict=True):
                yield dict(zip(table.column_names, values, strict=True))


def _slices(column: pa.ChunkedArray) -> list[Any]:
    """A kept column as arrays of one value. Python has no values for some types, such as nanoseconds."""
    return [chunk.slice(position, 1) for chunk in column.chunks for position in range(len(chunk))]


def _num_records(records: Sequence[Record], start: int, row: Row) -> int:
    """The number of a row's records from `start` on: one if the row failed, otherwise one for each image."""
    failed = start < len(records) and records[start]["status"] == "failed"
    return 1 if failed else row.num_images
