"""The footers of the input's Parquet files: bounded, and refused where a column is encrypted.

pyarrow 26 ends the process when it is asked for the metadata of an encrypted column without its key. Its
readers raise an error for the same column instead. They look at all columns before they read the first page.
"""

import io
import os
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from actors.storage.objects import Storage
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import SpecError

MAX_FOOTER_BYTES = 16 << 20
"""The longest footer that is read. In a hostile one, every three bytes can unfold to 700. Common footers have
a megabyte at most."""
FIRST_READ_BYTES = 64 << 10
"""The bytes from the end of a file that pyarrow reads first."""


class _EncryptedError(Exception):
    """A column is encrypted, and darkroom has no key."""


class _SealedError(Exception):
    """A reader asks for bytes of a sealed file."""


class _FooterOnly(io.RawIOBase):
    """A file that can be read until it is sealed."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._sealed = False

    def seal(self) -> None:
        """Refuse every later read with _SealedError."""
        self._sealed = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def read(self, size: int | None = -1) -> bytes:
        if self._sealed:
            raise _SealedError
        return self._source.read(-1 if size is None else size)

    def close(self) -> None:
        self._source.close()
        super().close()


def read_footer(storage: Storage, uri: str) -> tuple[int, pa.Schema]:
    """(number of rows, schema) of a Parquet file; SpecError where the file cannot be read or is encrypted."""
    try:
        with (
            parquet_errors_as(SpecError, f"input.path: {uri} is not a readable Parquet file"),
            _with_bounded_footer(storage.open(uri)) as source,
            # Without a buffer (buffer_size=0) it would read all columns before it looks at the first.
            pq.ParquetFile(source, buffer_size=1, pre_buffer=False) as parquet,
        ):
            num_rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
            _refuse_encrypted(source, parquet)
            return num_rows, schema
    except _EncryptedError as error:
        raise SpecError(
            f"input.path: {uri} is encrypted, and darkroom has no keys; write it without encryption"
        ) from error


def _with_bounded_footer(source: BinaryIO) -> _FooterOnly:
    """The file, which can be sealed after its footer was read; ArrowInvalid where the footer is too long."""
    # These are the bytes that pyarrow reads first, so they are fetched once.
    source.seek(max(0, source.seek(0, os.SEEK_END) - FIRST_READ_BYTES))
    tail = source.read(FIRST_READ_BYTES)
    if tail.endswith(b"PAR1") and (size := int.from_bytes(tail[-8:-4], "little")) > MAX_FOOTER_BYTES:
        source.close()
        raise pa.ArrowInvalid(
            f"its footer has {size:,} bytes, and at most {MAX_FOOTER_BYTES:,} are read; "
            "write it with larger row groups, or fewer columns"
        )
    return _FooterOnly(source)


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
