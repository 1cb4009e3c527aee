"""Parquet copies of input files that are not Parquet, or are on the Hub. The other code reads these alone.

A copy is made in a folder for temporary files, and stored in the output when the job begins. Its columns are
cells: the field that a cell fills decides its type when it is read, so the copy is right for any spec.
"""

import fcntl
import glob
import hashlib
import io
import os
import posixpath
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from actors.parts.commit import takes_pieces
from actors.storage.long_reading import LongReading
from actors.storage.objects import MAX_PUT_BYTES, StoredObject
from actors.storage.output import Output
from jobs.intake.formats import TextFormat
from jobs.intake.text_lines import line_blocks
from jobs.intake.text_tables import BOOL, FLOAT, INT, LONG_INT, TEXT, TextBatch
from schemas.columns.cells import LINE_COLUMN, LINE_TYPE, cell_type
from schemas.errors import SpecError, StorageError
from schemas.output_layout import input_copy
from schemas.wording.amounts import size_text

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK_BYTES = 1 << 20
_PREFIX = "darkroom-input-"
_TYPES: Mapping[frozenset[str], pa.DataType] = {
    **dict.fromkeys(map(frozenset, ({INT}, {LONG_INT}, {INT, LONG_INT})), pa.int64()),
    **dict.fromkeys(map(frozenset, ({FLOAT}, {INT, FLOAT})), pa.float64()),
    frozenset({BOOL}): pa.bool_(),
}
"""The type of a column of JSON by the kinds of its values. All others are text, as it is written."""

MAX_PAUSE_S = 60.0
"""What is done with a block takes longer than to read it, and it belongs to the reading."""
_reading = LongReading("copying the input as Parquet, which is done once", MAX_PAUSE_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetCopy:
    """The rows of an input file as a Parquet file."""

    name: str
    """Its path in an output, relative to it."""
    uri: str
    """Where it is now."""


class CopyFolder:
    """A folder for temporary files that lasts as long as this object."""

    def __init__(self) -> None:
        _remove_left()
        made = tempfile.mkdtemp(prefix=f".{_PREFIX}")
        # The lock tells other drivers that this one lives: it goes with the process, however that ends.
        lock = os.open(made, os.O_RDONLY)
        with suppress(OSError):  # A file system without locks: no driver will believe that this one is dead.
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Before the folder has its lock, its name is not one that other drivers look for.
        self._path = os.path.join(os.path.dirname(made), os.path.basename(made).removeprefix("."))
        os.rename(made, self._path)
        self.remove = weakref.finalize(self, _remove, self._path, lock)

    def copy_text(self, source: BinaryIO, stored: StoredObject, text_format: TextFormat) -> ParquetCopy:
        """The copy of a text file; SpecError where it cannot be read."""
        blocks = line_blocks(_Counted(source, stored.uri), text_format.compression, stored.uri)
        with self._written(stored.uri) as path, self._unfinished() as spooled:
            schema = _spool(text_format.read(blocks, stored.uri), spooled, stored.uri)
            with pq.ParquetWriter(path, schema, compression="zstd") as writer:
                for batch in _spooled(spooled):
                    writer.write_batch(_as_cells(batch, schema))
        return self._named(path, stored)

    def copy_parquet(self, source: BinaryIO, stored: StoredObject) -> ParquetCopy:
        """The copy, byte for byte, of a Parquet file."""
        with self._written(stored.uri) as path, open(path, "wb") as file:
            shutil.copyfileobj(_Counted(source, stored.uri), file, _BLOCK_BYTES)
        return self._named(path, stored)

    def copy_table(self, rows: pa.Table, stored: StoredObject) -> ParquetCopy:
        """A copy that has only these rows of a file."""
        with self._written(stored.uri) as path:
            pq.write_table(rows, path, compression="zstd")
        return self._named(path, stored)

    @contextmanager
    def _unfinished(self) -> Iterator[str]:
        """The path of a file that is removed afterwards."""
        path = os.path.join(self._path, uuid.uuid4().hex)
        try:
            yield path
        finally:
            if os.path.exists(path):
                os.unlink(path)

    @contextmanager
    def _written(self, uri: str) -> Iterator[str]:
        """The path of a new file, for the copy of the file at `uri`."""
        try:
            yield os.path.join(self._path, uuid.uuid4().hex)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(
                f"{uri} cannot be turned into Parquet in {self._path}: {error}; set TMPDIR to a larger disk"
            ) from error

    def _named(self, path: str, stored: StoredObject) -> ParquetCopy:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ParquetCopy(name=input_copy(posixpath.basename(stored.uri), digest), uri=path)


def store_copies(copies: Iterable[ParquetCopy], output: Output) -> None:
    """Store the copies that the output does not have yet. This comes before the record that names them.

    A driver that is killed in between leaves copies to which nothing refers. The next one finds or makes the
    same, because their names have the hashes of their contents.
    """
    for name, uri in {copy.name: copy.uri for copy in copies}.items():
        if uri != output.uri(name):
            refuse_large_copy(name, os.path.getsize(uri), output)
            with pa.memory_map(uri) as content:
                output.storage.create(output.uri(name), memoryview(content.read_buffer()), {})


def refuse_large_copy(name: str, size_bytes: int, output: Output) -> None:
    """Raise SpecError for a copy that the output's store cannot take, which is asked only if it must be."""
    if size_bytes > MAX_PUT_BYTES and not takes_pieces(output):
        raise SpecError(
            f"input.path: the copy of a file for the output, {name}, has {size_text(size_bytes)}, and the "
            f"store of {output.path} takes at most {size_text(MAX_PUT_BYTES)}, because it cannot be trusted "
            "with a conditional upload in pieces; write the rows into several files, or use another store"
        )


def _remove(path: str, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_left() -> None:
    """Remove the folders of this user's drivers that were killed."""
    for path in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{_PREFIX}*")):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # Another user's, or removed just now.
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # Its driver lives.
        finally:
            os.close(lock)


class _Counted(io.RawIOBase):
    """An open file whose blocks are told of if reading them takes long."""

    def __init__(self, source: BinaryIO, uri: str) -> None:
        self._source = source
        self._uri = uri

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        block = memoryview(buffer).cast("B")
        data = self._source.read(len(block))
        block[: len(data)] = data
        _reading.add(self._uri, len(data))
        return len(data)


def _spool(batches: Iterable[TextBatch], path: str, uri: str) -> pa.Schema:
    """Write the batches to a file; the schema of all of them: a key of JSON may come late."""
    kinds: dict[str, set[str]] = {}
    with pa.OSFile(path, "wb") as sink:
        for batch in batches:
            for name in batch.columns:
                kinds.setdefault(name, set()).update(batch.kinds.get(name, {TEXT}))
            if LINE_COLUMN in kinds:
                raise SpecError(
                    f"input.path: {uri} has a column `{LINE_COLUMN}`, a name that is taken; rename it"
                )
            arrays = [pa.array(cells, pa.string()) for cells in batch.columns.values()]
            lines = pa.array(batch.lines, pa.int64())
            table = pa.RecordBatch.from_arrays([*arrays, lines], [*batch.columns, LINE_COLUMN])
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_batch(table)
    types = {name: _TYPES.get(frozenset(of_column), pa.string()) for name, of_column in kinds.items()}
    cells = [(name, cell_type(arrow_type)) for name, arrow_type in types.items()]
    return pa.schema([*cells, (LINE_COLUMN, LINE_TYPE)])


def _spooled(path: str) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(path) as source:
        while source.tell() < source.size():
            yield from pa.ipc.open_stream(source)


def _as_cells(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with all columns of the schema; null where it lacks one."""
    arrays = []
    for field in schema:
        column = batch.column(field.name) if field.name in batch.schema.names else pa.nulls(batch.num_rows)
        storage = column.cast(field.type.storage_type)
        arrays.append(pa.ExtensionArray.from_storage(field.type, storage))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
