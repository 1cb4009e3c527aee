"""How many rows of a Parquet file can be read together, by its footer's word, without gigabytes of memory.

A footer tells the bytes of a column as they are encoded. One picture in a dictionary and a thousand numbers
of it are five megabytes there, and five gigabytes once they are unfolded; so is a text of which each row
repeats the one before, in the encoding DELTA_BYTE_ARRAY.
"""

from collections.abc import Collection, Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from actors.inputs.texts import Problems

BATCH_BYTES = 64 << 20
"""Of a batch, where the footer tells the truth: rows can be megabytes, and compress to nothing."""

_GATHERED_BYTES = 256 << 20
"""Of a chunk that is read with its dictionary: where its writer gave that up, pyarrow 26 puts the whole rest
of the row group into one."""

_VALUE_BYTES = 8
"""Of a number in memory: a million zeros in a list are one run of them in the file."""

_OF_BYTES = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_DICTIONARY_ENCODINGS = {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY", "BIT_PACKED"}


def dictionary_leaves(footer: pq.FileMetaData, columns: Collection[str]) -> list[str]:
    """Leaves that are read with their dictionaries, so that no text is unfolded unseen.

    Pictures are not: of those `fitting` lets so few be read together that they may be unfolded. But in a
    list, one row alone may be as large as it likes.
    """
    leaves = [footer.schema.column(place) for place in range(len(footer.schema.names))]
    # pyarrow 26 casts a column of dictionaries to one of views, but not the parts of one.
    types = footer.schema.to_arrow_schema()
    unfit = {field.name for field in types if pa.types.is_nested(field.type) and "_view" in str(field.type)}
    lists = {leaf.path for leaf in leaves if leaf.max_repetition_level}
    wanted = {
        leaf.path
        for leaf in leaves
        if _is_of(leaf.path, columns)
        and not _is_of(leaf.path, unfit)
        and leaf.physical_type == "BYTE_ARRAY"
        and (leaf.logical_type.type == "STRING" or leaf.path in lists)
    }
    for chunk in _chunks(footer, columns):
        leaf = chunk.path_in_schema
        if (
            not chunk.has_dictionary_page
            or not _DICTIONARY_ENCODINGS.issuperset(chunk.encodings)
            or (leaf not in lists and chunk.total_uncompressed_size > _GATHERED_BYTES)
        ):
            wanted.discard(leaf)
    return sorted(wanted)


def fitting(
    footer: pq.FileMetaData, most_rows: int, columns: Collection[str], dictionaries: Collection[str]
) -> int:
    """As many rows as a batch of these columns may have; `dictionaries` are not unfolded."""
    largest = 1.0
    for place in range(footer.num_row_groups):
        group = footer.row_group(place)
        chunks = _chunks_of(group, columns)
        largest = max(
            largest, sum(_row_bytes(chunk, max(group.num_rows, 1), dictionaries) for chunk in chunks)
        )
    return max(1, min(most_rows, int(BATCH_BYTES / largest)))


def _row_bytes(chunk: pq.ColumnChunkMetaData, num_rows: int, dictionaries: Collection[str]) -> float:
    values = chunk.num_values / num_rows
    size = max(chunk.total_uncompressed_size / num_rows, values * _VALUE_BYTES)
    if chunk.physical_type in _OF_BYTES and chunk.path_in_schema not in dictionaries:
        size = max(size, values * _largest_value(chunk))
    return float(size)


def _largest_value(chunk: pq.ColumnChunkMetaData) -> int:
    """The most bytes that each of many values may have in memory, beyond what is written of it."""
    if "DELTA_BYTE_ARRAY" in chunk.encodings:
        return int(chunk.total_uncompressed_size)
    if not chunk.has_dictionary_page:
        return 0
    # The size of the dictionary's page is not in the footer. Pages of numbers hardly grow by their
    # compression, so what the chunk gains by it is the dictionary's at most.
    stored = chunk.data_page_offset - chunk.dictionary_page_offset
    gained = chunk.total_uncompressed_size - chunk.total_compressed_size
    return int(min(chunk.total_uncompressed_size, max(0, stored) + max(0, gained)))


def rebatched(
    batches: Iterable[tuple[pa.RecordBatch, Problems]], num_rows: int
) -> Iterator[tuple[pa.RecordBatch, Problems]]:
    """The batches joined to ones of `num_rows`, where those that had to be feared turn out to be small."""
    waiting: list[pa.RecordBatch] = []
    problems: Problems = {}
    rows, size_bytes = 0, 0
    for batch, found in batches:
        rows += batch.num_rows
        size_bytes += batch.nbytes
        if waiting and (rows > num_rows or size_bytes > BATCH_BYTES or _is_brittle(batch)):
            yield _as_one(waiting), problems
            waiting, problems, rows, size_bytes = [], {}, batch.num_rows, batch.nbytes
        waiting.append(batch)
        problems |= {rows - batch.num_rows + place: problem for place, problem in found.items()}
    if waiting:
        yield _as_one(waiting), problems


def _is_brittle(batch: pa.RecordBatch) -> bool:
    """Whether it has views of lists: of joined ones pyarrow 26 casts a part to empty lists."""
    return any("list_view" in str(field.type) for field in batch.schema)


def _as_one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _chunks(footer: pq.FileMetaData, columns: Collection[str]) -> Iterator[pq.ColumnChunkMetaData]:
    for place in range(footer.num_row_groups):
        yield from _chunks_of(footer.row_group(place), columns)


def _chunks_of(group: pq.RowGroupMetaData, columns: Collection[str]) -> Iterator[pq.ColumnChunkMetaData]:
    for place in range(group.num_columns):
        chunk = group.column(place)
        if _is_of(chunk.path_in_schema, columns):
            yield chunk


def _is_of(leaf: str, columns: Collection[str]) -> bool:
    """Whether a leaf is one of these columns, or part of one; `image.path` is asked for alone."""
    return leaf in columns or leaf.partition(".")[0] in columns
