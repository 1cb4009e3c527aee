"""The encoded pictures of a shard: each once, in memory as far as there is room and on disk beyond.

A row of the input may be a number into a dictionary, or compress to nothing: a file of a hundred kilobytes
can have a picture of five megabytes in each of its rows, all equal or no two of them. And honest catalogues
have pictures of twenty megabytes, 256 of them in a shard, and three shards in a worker at a time.
"""

import hashlib
import os
import tempfile
import threading
import weakref
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

MEMORY_BYTES = 256 << 20
"""Of one shard: 256 pictures of a megabyte."""


class Spool:
    """Holds a shard's pictures until the last of them is let go; safe to call from several threads."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._room_bytes = memory_bytes
        self._held: dict[bytes, Encoded] = {}
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None

    def add(self, data: bytes) -> "Encoded":
        """The picture, or the one that is equal and here already."""
        digest = hashlib.sha256(data).digest()
        with self._lock:
            if digest not in self._held:
                self._held[digest] = self._put(data)
            return self._held[digest]

    def _put(self, data: bytes) -> "Encoded":
        if len(data) <= self._room_bytes:
            self._room_bytes -= len(data)
            return data
        if self._file is None:
            # It has no name, so whatever becomes of this process, nothing is left behind.
            self._file = tempfile.TemporaryFile(prefix="darkroom-", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        start, rest = self._file.tell(), memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        return SpooledImage(self, start, len(data))

    def read(self, start: int, size_bytes: int) -> bytes:
        """What was written there."""
        assert self._file is not None, "nothing was written"
        data = os.pread(self._file.fileno(), size_bytes, start)
        if len(data) != size_bytes:
            raise OSError(f"{size_bytes - len(data):,} bytes of a temporary file are gone")
        return data


@dataclass(frozen=True, slots=True, eq=False)
class SpooledImage:
    """A picture for which memory had no room."""

    spool: Spool
    start: int
    size_bytes: int


Encoded: TypeAlias = bytes | SpooledImage
"""A picture's file, wherever it is held."""


def encoded_bytes(encoded: Encoded) -> bytes:
    """Its bytes."""
    return encoded if isinstance(encoded, bytes) else encoded.spool.read(encoded.start, encoded.size_bytes)
