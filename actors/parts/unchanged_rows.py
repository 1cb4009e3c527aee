"""The rows of a part that stay as they are when others are made again."""

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.parts.part import Record
from actors.rows.row import Row
from schemas.errors import RefusedError


def unchanged_rows(
    part: bytes, rows: Sequence[Row], again: Collection[str], carried: Collection[str]
) -> Mapping[int, list[Record]]:
    """A part's rows by their place in the shard, but those that failed with one of the codes `again` (with
    any code, where it is empty). RefusedError where the part does not hold these rows.

    `carried`: the columns of input.keep.
    """
    table = pq.ParquetFile(io.BytesIO(part), page_checksum_verification=True).read()
    columns = [
        _slices(column) if name in carried else column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    records = [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
    unchanged: dict[int, list[Record]] = {}
    start = 0
    for row in rows:
        mine = records[start : start + _num_records(records, start, row)]
        if not mine or any(record["row_id"] != row.row_id for record in mine):
            raise RefusedError(f"the part does not hold row {row.row_id!r} where its shard has it")
        start += len(mine)
        failed = mine[0]["status"] == "failed"
        if not failed or (again and mine[0]["error_code"] not in again):
            unchanged[row.index] = mine
    if start != len(records):
        raise RefusedError(f"the part has {len(records) - start} rows more than its shard")
    return unchanged


def _slices(column: pa.ChunkedArray) -> list[Any]:
    """Arrays of one: input.keep may have columns of which Python has no values, such as nanoseconds."""
    return [chunk.slice(place, 1) for chunk in column.chunks for place in range(len(chunk))]


def _num_records(records: Sequence[Record], start: int, row: Row) -> int:
    """A failed row has one, any other one for each picture."""
    failed = start < len(records) and records[start]["status"] == "failed"
    return 1 if failed else row.num_images
