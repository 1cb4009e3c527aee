"""What the footers of parts tell of their row groups, without reading a row."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.storage.objects import Storage
from actors.storage.output import Output
from jobs.output.parts import FOOTERS_AT_ONCE, PartFile, totals_in
from schemas.columns.output_columns import misfits
from schemas.errors import RefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """A row group of a part."""

    uri: str
    footer: Any = field(compare=False, repr=False)
    """The part's, so that it is not read again for every group."""
    index: int
    first_row: int
    """In the part."""
    num_rows: int
    pictures: tuple[str, ...]
    """The columns to be shown as pictures."""
    image_bytes: int
    """Of its embedded pictures; 0 where they are objects of their own."""
    columns: tuple[str, ...]
    """Those of the part that a line of text can show."""
    kinds: tuple[tuple[str, str] | None, ...]
    """Least and greatest model, task and status; None where the writer kept no statistics."""

    @property
    def has_failures(self) -> bool:
        """False where its statistics rule it out."""
        return self._may_hold("failed", 0)

    @property
    def has_images(self) -> bool:
        """False where all its rows failed."""
        return self._may_hold("ok", 1) or self._may_hold("filtered", 1)

    def _may_hold(self, status: str, end: int) -> bool:
        # In the order of letters: failed, filtered, ok.
        statuses = self.kinds[-1]
        return statuses is None or statuses[end] == status


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFooter:
    """What a part's footer tells."""

    groups: tuple[RowGroup, ...]
    error_codes: Mapping[str, int]


def read_footers(output: Output, parts: Sequence[PartFile]) -> list[PartFooter]:
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return list(pool.map(lambda part: _read_footer(output.storage, part.stored.uri), parts))


def _read_footer(storage: Storage, uri: str) -> PartFooter:
    try:
        with storage.open(uri) as file:
            found = pq.read_metadata(file)
        schema = found.schema.to_arrow_schema()
        for misfit in misfits(schema):
            raise RefusedError(f"{uri} is no part of darkroom's: {misfit}")
        columns = tuple(field.name for field in schema if _is_plain(field.type))
        groups = tuple(_groups(uri, found, columns))
    # ValueError: of statistics that are no UTF-8.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RefusedError(f"{uri} is no part of darkroom's: {error}") from error
    return PartFooter(groups=groups, error_codes=dict(totals_in(found.metadata or {}, uri).error_codes))


def _is_plain(arrow_type: pa.DataType) -> bool:
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return not pa.types.is_nested(arrow_type) and not any(check(arrow_type) for check in binary)


def _groups(uri: str, found: Any, columns: tuple[str, ...]) -> Iterator[RowGroup]:
    first_row = 0
    for index in range(found.num_row_groups):
        group = found.row_group(index)
        chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
        pictures = tuple(name for name in ("image", "depth") if f"{name}.bytes" in chunks)
        if group.num_rows:
            yield RowGroup(
                uri=uri,
                footer=found,
                index=index,
                first_row=first_row,
                num_rows=group.num_rows,
                pictures=pictures,
                image_bytes=sum(chunks[f"{name}.bytes"].total_compressed_size for name in pictures),
                columns=columns,
                kinds=tuple(_ends(chunks[name]) for name in ("model", "task", "status")),
            )
        first_row += group.num_rows


def _ends(chunk: Any) -> tuple[str, str] | None:
    statistics = chunk.statistics
    return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None
