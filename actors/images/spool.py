"""The spool: a shard's encoded images, each once, in memory up to a limit and on disk beyond it.

A row of the input may be a reference into a dictionary, or compress to nothing: a file of a hundred kilobytes
can have an image of five megabytes in each of its rows, all of them equal or all different. And honest
datasets have images of twenty megabytes, 256 of them in a shard. A worker has three shards at a time.
"""

import hashlib
import os
import tempfile
import threading
import weakref
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

MEMORY_BYTES = 256 << 20
"""The memory for the images of one shard: 256 images of a megabyte."""


class Spool:
    """The images of one shard, until the last of them is no longer used. Several threads may use it."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._room_bytes = memory_bytes
        self._images: dict[bytes, Encoded] = {}
        """Images by the SHA-256 of their files."""
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None

    def add(self, data: bytes) -> "Encoded":
        """The image in the spool: an equal one if there is one already, otherwise this one."""
        digest = hashlib.sha256(data).digest()
        with self._lock:
            if digest not in self._images:
                self._images[digest] = self._put(data)
            return self._images[digest]

    def _put(self, data: bytes) -> "Encoded":
        if len(data) <= self._room_bytes:
            self._room_bytes -= len(data)
            return data
        if self._file is None:
            # The file has no name, so nothing is left behind however this process ends.
            self._file = tempfile.TemporaryFile(prefix="darkroom-", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        start, rest = self._file.tell(), memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        return SpooledImage(self, start, len(data))

    def read(self, start: int, size_bytes: int) -> bytes:
        """The bytes of an image, from the place in the file where it was written."""
        assert self._file is not None, "nothing was written"
        data = os.pread(self._file.fileno(), size_bytes, start)
        if len(data) != size_bytes:
            raise OSError(f"{size_bytes - len(data):,} bytes of a temporary file are missing")
        return data


@dataclass(frozen=True, slots=True, eq=False)
class SpooledImage:
    """An image on disk, for which there was no room in memory."""

    spool: Spool
    start: int
    size_bytes: int


Encoded: TypeAlias = bytes | SpooledImage
"""An image's encoded file, in memory or on disk."""


def encoded_bytes(encoded: Encoded) -> bytes:
    """The bytes of an image's encoded file."""
    return encoded if isinstance(encoded, bytes) else encoded.spool.read(encoded.start, encoded.size_bytes)
