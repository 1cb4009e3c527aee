"""Parquet files with encrypted columns, refused by their footers.

pyarrow 26 ends the process when it is asked for the metadata of a column whose key it has not. Its readers
come upon the same column with an error instead; they look at all columns before they read the first one.
"""

import io
from typing import BinaryIO

import pyarrow.parquet as pq


class EncryptedError(Exception):
    """There is no key."""


class FooterOnly(io.RawIOBase):
    """A file that can be read until it is sealed."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._sealed = False

    def seal(self) -> None:
        """Nothing more can be read."""
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


class _SealedError(Exception):
    """Something wanted to read on."""


def refuse_encrypted(source: FooterOnly, parquet: pq.ParquetFile) -> None:
    """EncryptedError where a column is; `parquet`, which reads `source`, is of no use afterwards."""
    source.seal()
    for group in range(parquet.metadata.num_row_groups):
        try:
            next(parquet.iter_batches(1, row_groups=[group], use_threads=False), None)
        except _SealedError:
            continue  # It has seen all columns, and wants the first page.
        except OSError as error:
            if "crypt" in str(error):
                raise EncryptedError(str(error)) from error
            raise
