"""How many rows of a Parquet file can be read together without gigabytes of memory.

The answer comes from the file's footer, which has the size of each column as it is encoded. If a dictionary
has one image and a thousand rows refer to it, the column takes five megabytes in the file and five gigabytes
once it is unfolded. The same goes for a text that each row repeats, in the encoding DELTA_BYTE_ARRAY.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from actors.inputs.texts import Problems

BATCH_BYTES = 64 << 20
"""The largest size of a batch in memory, if the footer tells the truth. A single row can have megabytes, and
compress to nothing."""

_NUMBER_BYTES = 8
"""The size of a number in memory. In the file it can be far smaller: a list of a million zeros is one run."""

_BYTE_TYPES = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_DICTIONARY_INDICES = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}


def rows_per_batch(
    group: pq.RowGroupMetaData,
    max_rows: int,
    columns: Collection[str],
    dictionaries: Collection[str],
    largest: Mapping[str, int],
) -> int:
    """The number of rows that a batch of these columns of a row group may have: from 1 to `max_rows`.

    `dictionaries`: the leaves that are read with their dictionaries, and so are not unfolded. `largest`: the
    bytes of the largest value in the dictionaries of those leaves where it is known.
    """
    chunks = chunks_of(group, columns)
    row_bytes = sum(_row_bytes(chunk, max(group.num_rows, 1), dictionaries, largest) for chunk in chunks)
    return max(1, min(max_rows, int(BATCH_BYTES / max(row_bytes, 1.0))))


def _row_bytes(
    chunk: pq.ColumnChunkMetaData, num_rows: int, dictionaries: Collection[str], largest: Mapping[str, int]
) -> float:
    leaf, values_per_row = chunk.path_in_schema, chunk.num_values / num_rows
    size = max(chunk.total_uncompressed_size / num_rows, values_per_row * _NUMBER_BYTES)
    if chunk.physical_type in _BYTE_TYPES and leaf not in dictionaries:
        value_bytes = largest[leaf] if leaf in largest else largest_value_bytes(chunk)
        size = max(size, values_per_row * value_bytes)
    return float(size)


def largest_value_bytes(chunk: pq.ColumnChunkMetaData) -> int:
    """The most bytes that one value may have in memory, where many values share bytes of the file."""
    if "DELTA_BYTE_ARRAY" in chunk.encodings:
        return int(chunk.total_uncompressed_size)
    if not has_dictionary(chunk):
        return 0
    if not chunk.has_dictionary_page:
        return int(chunk.total_uncompressed_size)
    # The footer does not have the uncompressed size of the dictionary's page. Pages of indices hardly grow
    # by compression, so the dictionary's page saves at most as much as the whole chunk does.
    stored_bytes = chunk.data_page_offset - chunk.dictionary_page_offset
    saved_bytes = chunk.total_uncompressed_size - chunk.total_compressed_size
    return int(min(chunk.total_uncompressed_size, max(0, stored_bytes) + max(0, saved_bytes)))


def has_dictionary(chunk: pq.ColumnChunkMetaData) -> bool:
    """Whether a chunk has a dictionary. Old writers leave its place out, and pyarrow finds it anyway."""
    return bool(chunk.has_dictionary_page or not _DICTIONARY_INDICES.isdisjoint(chunk.encodings))


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
        if waiting and (
            rows > num_rows
            or size_bytes > BATCH_BYTES
            or batch.schema != waiting[0].schema
            or _has_list_views(batch)
        ):
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


def chunks_of(group: pq.RowGroupMetaData, columns: Collection[str]) -> Iterator[pq.ColumnChunkMetaData]:
    """The column chunks of a row group that belong to these columns."""
    for index in range(group.num_columns):
        chunk = group.column(index)
        if belongs_to(chunk.path_in_schema, columns):
            yield chunk


def belongs_to(leaf: str, columns: Collection[str]) -> bool:
    """Whether a leaf belongs to one of `columns`, where a name can also be that of a leaf: `image.path`."""
    return leaf in columns or leaf.partition(".")[0] in columns
