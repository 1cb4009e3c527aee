"""The footers of parts and their row groups, read without reading a row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from actors.inputs.footers import FooterReader
from actors.storage.output import Output
from jobs.in_flight import map_in_flight
from jobs.output.parts import FOOTERS_AT_ONCE, PartFile, totals_in
from schemas.columns.output_columns import IMAGE_TYPE, column_problems
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import RefusedError
from schemas.systems.parameters import PARAMETERS

_IMAGE_LEAVES = {
    "image": "image.bytes",
    "depth": "depth.bytes",
    "step_images": "step_images.list.element.bytes",
}
"""Parquet's name of the bytes of each column of darkroom's own that is shown as images."""
MAX_KEPT_IMAGES = 4
"""Kept columns that are shown as images: as many as one row has control images at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """A row group of a part."""

    uri: str
    footer: Any = field(compare=False, repr=False)
    """The part's Parquet footer, kept so that it is not read again for every group."""
    index: int
    """Position in the part."""
    first_row: int
    """Position of its first row in the part."""
    num_rows: int
    image_columns: tuple[str, ...]
    """The columns to be shown as images: darkroom's own, then kept ones."""
    image_bytes: int
    """Size of its embedded images; 0 where images are objects of their own."""
    columns: tuple[str, ...]
    """The columns of the part that can be shown as a line of text: plain values, and parameters."""
    kinds: tuple[tuple[str, str] | None, ...]
    """(least, greatest) for model, task and status; None for a column without statistics."""

    @property
    def kept_images(self) -> tuple[str, ...]:
        """The kept columns to be shown as images."""
        return tuple(name for name in self.image_columns if name not in _IMAGE_LEAVES)

    @property
    def has_failures(self) -> bool:
        """Whether it may have failed rows; False if its statistics rule that out."""
        return self._may_have("failed", 0)

    @property
    def has_images(self) -> bool:
        """Whether it may have rows with images; False if its statistics show that all rows failed."""
        return self._may_have("ok", 1) or self._may_have("filtered", 1)

    def _may_have(self, status: str, end: int) -> bool:
        """Whether this is the least (`end` 0) or greatest (`end` 1) status, or the statuses are unknown."""
        # The alphabetical order is failed, filtered, ok.
        statuses = self.kinds[-1]
        return statuses is None or statuses[end] == status


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFooter:
    """What the contact sheet and `darkroom retry` need of a part's footer."""

    groups: tuple[RowGroup, ...]
    """Row groups that have rows."""
    error_codes: Mapping[str, int]
    """The number of failed rows by error_code."""


def read_footers(output: Output, parts: Sequence[PartFile]) -> Iterator[PartFooter]:
    """The footers of these parts, in their order; RefusedError where a file is not a darkroom part."""
    footers = FooterReader(output.storage)
    return map_in_flight(lambda part: _read_footer(footers, part.uri), parts, at_once=FOOTERS_AT_ONCE)


def _read_footer(footers: FooterReader, uri: str) -> PartFooter:
    with parquet_errors_as(RefusedError, f"{uri} is not a darkroom part"):
        metadata = footers.read(uri)
        schema = metadata.schema.to_arrow_schema()
        for misfit in column_problems(schema):
            raise RefusedError(f"{uri} is not a darkroom part: {misfit}")
        columns = tuple(field.name for field in schema if _is_plain(field.type) or field.name in PARAMETERS)
        kept = [
            field.name for field in schema if field.type == IMAGE_TYPE and field.name not in _IMAGE_LEAVES
        ]
        leaves = _IMAGE_LEAVES | {name: f"{name}.bytes" for name in kept[:MAX_KEPT_IMAGES]}
        groups = tuple(_groups(uri, metadata, columns, leaves))
    return PartFooter(groups=groups, error_codes=dict(totals_in(metadata.metadata or {}, uri).error_codes))


def _is_plain(arrow_type: pa.DataType) -> bool:
    """Whether a value of this type can be shown as a line of text."""
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return not pa.types.is_nested(arrow_type) and not any(check(arrow_type) for check in binary)


def _groups(
    uri: str, footer: Any, columns: tuple[str, ...], image_leaves: Mapping[str, str]
) -> Iterator[RowGroup]:
    first_row = 0
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
        image_columns = tuple(name for name, leaf in image_leaves.items() if leaf in chunks)
        if group.num_rows:
            yield RowGroup(
                uri=uri,
                footer=footer,
                index=index,
                first_row=first_row,
                num_rows=group.num_rows,
                image_columns=image_columns,
                image_bytes=sum(chunks[image_leaves[name]].total_compressed_size for name in image_columns),
                columns=columns,
                kinds=tuple(_min_and_max(chunks[name]) for name in ("model", "task", "status")),
            )
        first_row += group.num_rows


def _min_and_max(chunk: Any) -> tuple[str, str] | None:
    statistics = chunk.statistics
    return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None
