"""Which columns of a Parquet file are read with their dictionaries, and how many rows of them together.

A dictionary bounds memory: a text that a million rows refer to is read once. But most writers give a
dictionary up at a megabyte, and plain pages follow it. Read with its dictionary, such a column becomes one
dictionary of all texts of its row group, which pyarrow 26 copies for each batch: the time grows with the
square of the row group. Values in plain pages have bytes of their own and need no such protection. So the
dictionaries themselves are looked at, and columns that do not gain by them are read without.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.inputs.batch_sizes import (
    belongs_to,
    chunks_of,
    has_dictionary,
    largest_value_bytes,
    rows_per_batch,
)
from actors.inputs.damaged_pages import is_damage

LOOK_BYTES = 1 << 20
"""The largest dictionary that is not looked at. A batch of a smaller column chunk has no larger one."""

_MAX_DICTIONARY_CHUNK_BYTES = 256 << 20
"""The largest chunk of texts that is read with its dictionary: all of it can end up there."""

_MAX_UNFOLDED_BYTES = 64 << 30
"""The most bytes that a chunk of texts may unfold to: about half a minute of copying."""

_MAX_LISTS_BYTES = 256 << 20
_MAX_LISTS_GROWTH = 8
"""A chunk of lists may unfold to that many bytes, or that many times its own size. Its footer does not say
how much of it is in one row."""

_JOINED_ROWS = 16_384
"""The number of rows from which on a row group is read by itself."""

_STREAM_BYTES = 1 << 20
"""How much of a column chunk is read at a time. A whole chunk can have gigabytes."""

_DICTIONARY_ENCODINGS = {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY", "BIT_PACKED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How some columns of neighbouring row groups are read."""

    groups: range
    dictionaries: frozenset[str]
    """The leaves that are read with their dictionaries, so that nothing is unfolded unchecked."""
    num_rows: int
    """The number of rows that a batch may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """The sizes of the values in one dictionary."""

    largest_bytes: int
    median_bytes: float


class Dictionaries:
    """The dictionaries of a Parquet file. One that matters is looked at when its row group is to be read."""

    def __init__(self, source: BinaryIO, footer: pq.FileMetaData) -> None:
        self._source = source
        self._footer = footer
        leaves = [footer.schema.column(index) for index in range(len(footer.schema.names))]
        # pyarrow 26 casts a column of dictionaries to a column of views, but not a leaf inside a nested one.
        fields = [field for field in footer.schema.to_arrow_schema() if pa.types.is_nested(field.type)]
        views = {field.name for field in fields if "_view" in str(field.type)}
        self._folding = {
            leaf.path
            for leaf in leaves
            if leaf.physical_type == "BYTE_ARRAY" and not belongs_to(leaf.path, views)
        }
        self._lists = {leaf.path for leaf in leaves if leaf.max_repetition_level}
        # Single images are unfolded: only a few of their rows are read together. A list of one row can have
        # any number of images.
        texts = {leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"}
        self._may_stay = self._folding & (texts | self._lists)
        self._looked_at: dict[tuple[int, str], _Entries | None] = {}

    def reading(self, first_group: int, columns: Collection[str], max_rows: int) -> Reading:
        """How these columns are read from a row group on, in batches of at most `max_rows` rows.

        Small row groups are read together with those after them.
        """
        reading = self._reading_of(first_group, columns, max_rows)
        joined_rows = self._footer.row_group(first_group).num_rows
        for group in range(first_group + 1, self._footer.num_row_groups):
            if joined_rows >= _JOINED_ROWS or self._is_look_needed(group, columns):
                break
            following = self._reading_of(group, columns, max_rows)
            if following.dictionaries != reading.dictionaries:
                break
            joined_rows += self._footer.row_group(group).num_rows
            reading = Reading(
                groups=range(first_group, group + 1),
                dictionaries=reading.dictionaries,
                num_rows=min(reading.num_rows, following.num_rows),
            )
        return reading

    def _reading_of(self, group: int, columns: Collection[str], max_rows: int) -> Reading:
        metadata = self._footer.row_group(group)
        chunks = {chunk.path_in_schema: chunk for chunk in chunks_of(metadata, columns)}
        entries = {
            leaf: found
            for leaf, chunk in chunks.items()
            if self._needs_look(chunk) and (found := self._look(group, leaf))
        }
        may_stay = {leaf for leaf in self._may_stay & chunks.keys() if _is_folded(chunks[leaf])}
        num_rows = rows_per_batch(metadata, max_rows, columns, may_stay, {})
        stay = {leaf for leaf in may_stay if self._stays(chunks[leaf], entries.get(leaf), num_rows)}
        largest = {leaf: sizes.largest_bytes for leaf, sizes in entries.items()}
        return Reading(
            groups=range(group, group + 1),
            dictionaries=frozenset(stay),
            num_rows=rows_per_batch(metadata, max_rows, columns, stay, largest),
        )

    def _is_look_needed(self, group: int, columns: Collection[str]) -> bool:
        return any(map(self._needs_look, chunks_of(self._footer.row_group(group), columns)))

    def _needs_look(self, chunk: pq.ColumnChunkMetaData) -> bool:
        leaf = chunk.path_in_schema
        if leaf not in self._folding or not _is_folded(chunk):
            return False
        size_bytes = chunk.total_uncompressed_size
        return bool((size_bytes if leaf in self._may_stay else largest_value_bytes(chunk)) > LOOK_BYTES)

    def _stays(self, chunk: pq.ColumnChunkMetaData, entries: _Entries | None, num_rows: int) -> bool:
        """Whether a chunk is read with its dictionary, in batches of about `num_rows` rows."""
        size_bytes, is_list = chunk.total_uncompressed_size, chunk.path_in_schema in self._lists
        if not is_list and size_bytes > _MAX_DICTIONARY_CHUNK_BYTES:
            return False
        if entries is None:
            return True
        unfolded_bytes = chunk.num_values * entries.largest_bytes
        if is_list:
            return bool(unfolded_bytes > max(_MAX_LISTS_BYTES, _MAX_LISTS_GROWTH * size_bytes))
        # What is copied for each batch: all that may be in the dictionary, or each row's text.
        return bool(unfolded_bytes > _MAX_UNFOLDED_BYTES or size_bytes <= num_rows * entries.median_bytes)

    def _look(self, group: int, leaf: str) -> _Entries | None:
        if (group, leaf) not in self._looked_at:
            self._looked_at[group, leaf] = self._entries_of(group, leaf)
        return self._looked_at[group, leaf]

    def _entries_of(self, group: int, leaf: str) -> _Entries | None:
        """The sizes of a dictionary's values; None if it is not certain that all of it was seen.

        It is certain once the dictionary was read: pyarrow refuses a column chunk with a second one.
        """
        parquet = open_parquet(self._source, self._footer, [leaf])
        try:
            batch = next(parquet.iter_batches(1, row_groups=[group], columns=[leaf], use_threads=False))
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            return None
        values = _innermost(batch.column(0))
        # For plain pages pyarrow makes a dictionary of the row's own values.
        if not pa.types.is_dictionary(values.type) or len(values.dictionary) <= len(values):
            return None
        lengths = pc.binary_length(values.dictionary).to_numpy()
        return _Entries(largest_bytes=int(lengths.max()), median_bytes=float(np.median(lengths)))


def open_parquet(source: BinaryIO, footer: pq.FileMetaData, dictionaries: Collection[str]) -> pq.ParquetFile:
    """A reader of the file that leaves these leaves in their dictionaries."""
    return pq.ParquetFile(
        source,
        metadata=footer,
        read_dictionary=sorted(dictionaries),
        buffer_size=_STREAM_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
    )


def _is_folded(chunk: pq.ColumnChunkMetaData) -> bool:
    """Whether many of a chunk's values may share bytes in a dictionary, and in no other way."""
    return has_dictionary(chunk) and _DICTIONARY_ENCODINGS.issuperset(chunk.encodings)


def _innermost(array: pa.Array) -> pa.Array:
    """The values of the only leaf of a column."""
    while pa.types.is_nested(array.type):
        array = array.field(0) if pa.types.is_struct(array.type) else array.values
    return array.storage if isinstance(array, pa.ExtensionArray) else array
