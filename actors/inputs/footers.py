"""The footers of Parquet files, read without the rest. An encrypted input is refused.

pyarrow 26 ends the process when it is asked for the metadata of an encrypted column without its key. Its
readers raise an error for the same column instead. They look at all columns before they read the first page.
"""

import io
import os

import pyarrow as pa
import pyarrow.parquet as pq

from actors.storage.objects import Storage, Tail
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import SpecError

MAX_FOOTER_BYTES = 16 << 20
"""The longest footer that is read. In a hostile one, every three bytes can unfold to 700. Common footers have
a megabyte at most."""
FIRST_READ_BYTES = 64 << 10
"""The bytes from the end of a file that pyarrow reads first."""
PART_FOOTER_BYTES = 16 << 10
"""Room for the footer of a common part, which has one or two row groups of 5 kB each."""
_FRAME_BYTES = 8
"""What comes behind a footer: its length, and Parquet's name."""


class _EncryptedError(Exception):
    """A column is encrypted, and darkroom has no key."""


class _SealedError(Exception):
    """A reader asks for bytes of a sealed file."""


class _FooterOnly(io.RawIOBase):
    """A file of which only the end is known. That can be read until it is sealed."""

    def __init__(self, tail: Tail) -> None:
        self._source = io.BytesIO(tail.data)
        self._start = tail.size_bytes - len(tail.data)
        self._position = 0
        self._sealed = False

    def seal(self) -> None:
        """Refuse every later read with _SealedError."""
        self._sealed = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self._position = self._start + self._source.seek(0, os.SEEK_END) + offset
        else:
            self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        if self._sealed or self._position < self._start:
            raise _SealedError
        self._source.seek(self._position - self._start)
        data = self._source.read(size)
        self._position += len(data)
        return data


def read_footer(storage: Storage, uri: str, copy_of: str = "") -> tuple[int, pa.Schema]:
    """(number of rows, schema) of a Parquet file; SpecError where the file cannot be read or is encrypted.

    `copy_of`: the file of which it is a copy, as messages name it.
    """
    name = copy_of or uri
    try:
        with (
            parquet_errors_as(SpecError, f"input.path: {name} is not a readable Parquet file"),
            _FooterOnly(_tail_with_footer(storage, uri, FIRST_READ_BYTES)) as source,
            # Without a buffer (buffer_size=0) it would read all columns before it looks at the first.
            pq.ParquetFile(source, buffer_size=1, pre_buffer=False) as parquet,
        ):
            num_rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
            _refuse_encrypted(source, parquet)
            return num_rows, schema
    except _EncryptedError as error:
        raise SpecError(
            f"input.path: {name} is encrypted, and darkroom has no keys; write it without encryption"
        ) from error


class FooterReader:
    """Reads the footers of a job's parts. They are alike: each read is as long as the longest one so far."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._num_bytes = PART_FOOTER_BYTES

    def read(self, uri: str) -> pq.FileMetaData:
        """The footer of a Parquet file; pa.ArrowInvalid where it has none. Several threads may call this."""
        tail = _tail_with_footer(self._storage, uri, self._num_bytes)
        num_bytes = _framed_footer_bytes(tail)
        self._num_bytes = max(self._num_bytes, num_bytes)
        # pyarrow looks at nothing before the footer. What is not a Parquet file is handed over as it is.
        return pq.read_metadata(io.BytesIO(tail.data[-num_bytes:]))


def _tail_with_footer(storage: Storage, uri: str, num_bytes: int) -> Tail:
    """The last `num_bytes` of a file, or more if its footer is longer; ArrowInvalid for too long a footer."""
    while True:
        tail = storage.read_tail(uri, num_bytes)
        framed_bytes = _framed_footer_bytes(tail)
        if (size := framed_bytes - _FRAME_BYTES) > MAX_FOOTER_BYTES:
            raise pa.ArrowInvalid(
                f"its footer has {size:,} bytes, and at most {MAX_FOOTER_BYTES:,} are read; "
                "write it with larger row groups, or fewer columns"
            )
        # A part may be replaced between two reads, and the new one have a longer footer still.
        if framed_bytes <= len(tail.data) or len(tail.data) == tail.size_bytes:
            return tail
        num_bytes = framed_bytes


def _framed_footer_bytes(tail: Tail) -> int:
    """The length of a footer with the frame behind it, as the frame tells; 0 for what is no Parquet file."""
    if not tail.data.endswith((b"PAR1", b"PARE")):
        return 0
    return int.from_bytes(tail.data[-_FRAME_BYTES:-4], "little") + _FRAME_BYTES


def _refuse_encrypted(source: _FooterOnly, parquet: pq.ParquetFile) -> None:
    """_EncryptedError where a column is encrypted. `parquet` reads `source` and cannot be used afterwards."""
    source.seal()
    for group in range(parquet.metadata.num_row_groups):
        try:
            next(parquet.iter_batches(1, row_groups=[group], use_threads=False), None)
        except _SealedError:
            continue  # The reader has looked at all columns, and asks for the first page.
        except OSError as error:
            if "crypt" in str(error):
                raise _EncryptedError(str(error)) from error
            raise
