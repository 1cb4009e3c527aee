"""How many rows of a Parquet file can be read together without gigabytes of memory.

The answer comes from the file's footer, which has the size of each column as it is encoded. If a dictionary
has one image and a thousand rows refer to it, the column takes five megabytes in the file and five gigabytes
once it is unfolded. The same goes for a text that each row repeats, in the encoding DELTA_BYTE_ARRAY.
"""

from collections.abc import Collection, Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from actors.inputs.texts import Problems

BATCH_BYTES = 64 << 20
"""The largest size of a batch in memory, if the footer tells the truth. A single row can have megabytes, and
compress to nothing."""

_MAX_DICTIONARY_CHUNK_BYTES = 256 << 20
"""The largest column chunk that is read with its dictionary. Where the chunk's writer gave the dictionary up,
pyarrow 26 gathers the whole rest of the row group in one dictionary."""

_NUMBER_BYTES = 8
"""The size of a number in memory. In the file it can be far smaller: a list of a million zeros is one run."""

_BYTE_TYPES = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_DICTIONARY_ENCODINGS = {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY", "BIT_PACKED"}


def dictionary_leaves(footer: pq.FileMetaData, columns: Collection[str]) -> list[str]:
    """The leaves that are read with their dictionaries, so that no text is unfolded unchecked.

    Columns of images are unfolded: `rows_per_batch` lets only a few of their rows be read together. Lists of
    images are not, because one row alone may have any number of them.
    """
    leaves = [footer.schema.column(index) for index in range(len(footer.schema.names))]
    # pyarrow 26 casts a column of dictionaries to a column of views, but not a leaf inside a nested column.
    types = footer.schema.to_arrow_schema()
    views = {field.name for field in types if pa.types.is_nested(field.type) and "_view" in str(field.type)}
    lists = {leaf.path for leaf in leaves if leaf.max_repetition_level}
    with_dictionary = {
        leaf.path
        for leaf in leaves
        if _belongs_to(leaf.path, columns)
        and not _belongs_to(leaf.path, views)
        and leaf.physical_type == "BYTE_ARRAY"
        and (leaf.logical_type.type == "STRING" or leaf.path in lists)
    }
    for chunk in _chunks(footer, columns):
        leaf = chunk.path_in_schema
        if (
            not chunk.has_dictionary_page
            or not _DICTIONARY_ENCODINGS.issuperset(chunk.encodings)
            or (leaf not in lists and chunk.total_uncompressed_size > _MAX_DICTIONARY_CHUNK_BYTES)
        ):
            with_dictionary.discard(leaf)
    return sorted(with_dictionary)


def rows_per_batch(
    footer: pq.FileMetaData, max_rows: int, columns: Collection[str], dictionaries: Collection[str]
) -> int:
    """The number of rows that a batch of these columns may have: from 1 to `max_rows`.

    `dictionaries`: the leaves that are read with their dictionaries, and so are not unfolded.
    """
    largest = 1.0
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        chunks = _chunks_of(group, columns)
        largest = max(
            largest, sum(_row_bytes(chunk, max(group.num_rows, 1), dictionaries) for chunk in chunks)
        )
    return max(1, min(max_rows, int(BATCH_BYTES / largest)))


def _row_bytes(chunk: pq.ColumnChunkMetaData, num_rows: int, dictionaries: Collection[str]) -> float:
    values_per_row = chunk.num_values / num_rows
    size = max(chunk.total_uncompressed_size / num_rows, values_per_row * _NUMBER_BYTES)
    if chunk.physical_type in _BYTE_TYPES and chunk.path_in_schema not in dictionaries:
        size = max(size, values_per_row * _largest_value_bytes(chunk))
    return float(size)


def _largest_value_bytes(chunk: pq.ColumnChunkMetaData) -> int:
    """The most bytes that one value may have in memory, where many values share bytes of the file."""
    if "DELTA_BYTE_ARRAY" in chunk.encodings:
        return int(chunk.total_uncompressed_size)
    if not chunk.has_dictionary_page:
        return 0
    # The footer does not have the uncompressed size of the dictionary's page. Pages of indices hardly grow
    # by compression, so the dictionary's page saves at most as much as the whole chunk does.
    stored_bytes = chunk.data_page_offset - chunk.dictionary_page_offset
    saved_bytes = chunk.total_uncompressed_size - chunk.total_compressed_size
    return int(min(chunk.total_uncompressed_size, max(0, stored_bytes) + max(0, saved_bytes)))


def rebatched(
    batches: Iterable[tuple[pa.RecordBatch, Problems]], num_rows: int
) -> Iterator[tuple[pa.RecordBatch, Problems]]:
    """The batches, with neighbours joined while together they have at most `num_rows` and BATCH_BYTES.

    The footer gives only the largest size that a batch may have, and most batches turn out far smaller.
    """
    waiting: list[pa.RecordBatch] = []
    problems: Problems = {}
    rows, size_bytes = 0, 0
    for batch, batch_problems in batches:
        rows += batch.num_rows
        size_bytes += batch.nbytes
        if waiting and (rows > num_rows or size_bytes > BATCH_BYTES or _has_list_views(batch)):
            yield _joined(waiting), problems
            waiting, problems, rows, size_bytes = [], {}, batch.num_rows, batch.nbytes
        waiting.append(batch)
        problems |= {rows - batch.num_rows + row: problem for row, problem in batch_problems.items()}
    if waiting:
        yield _joined(waiting), problems


def _has_list_views(batch: pa.RecordBatch) -> bool:
    """Whether a batch has list views. pyarrow 26 casts a part of joined ones to empty lists."""
    return any("list_view" in str(field.type) for field in batch.schema)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _chunks(footer: pq.FileMetaData, columns: Collection[str]) -> Iterator[pq.ColumnChunkMetaData]:
    for index in range(footer.num_row_groups):
        yield from _chunks_of(footer.row_group(index), columns)


def _chunks_of(group: pq.RowGroupMetaData, columns: Collection[str]) -> Iterator[pq.ColumnChunkMetaData]:
    for index in range(group.num_columns):
        chunk = group.column(index)
        if _belongs_to(chunk.path_in_schema, columns):
            yield chunk


def _belongs_to(leaf: str, columns: Collection[str]) -> bool:
    """Whether a leaf belongs to one of `columns`, where a name can also be that of a leaf: `image.path`."""
    return leaf in columns or leaf.partition(".")[0] in columns
