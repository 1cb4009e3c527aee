"""A number for each row, and which of the numbers several rows have. Very many are kept on disk."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from schemas.wording.amounts import size_text

MAX_IN_MEMORY = 10_000_000
"""The most rows whose keys are kept in memory. They take 80 MB, and as much again while they are sorted."""
PARTITION_ROWS = 4_000_000
"""The rows that are to share a file: all keys of a file are in memory at once, and sorted there."""
MAX_PARTITIONS = 256
"""The most files. They are open together, and a process may often open no more than 1,024."""
BUFFERED_ROWS = 1 << 20
"""The keys that are written together."""
CHUNK_ROWS = 1 << 24
"""The keys that are read together. A file has more where many rows have one key, or of 4,000,000,000 rows."""
_KEY_BYTES = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio: the upper bits of a product with it spread ids that count up."""

Keys = npt.NDArray[np.int64]
_NO_KEYS: Keys = np.empty(0, np.int64)


class RowKeys:
    """The keys of all rows, in a `with` block. Several threads may add keys.

    Those of more than MAX_IN_MEMORY rows are in temporary files, each with the keys of one partition. The
    files have no names, so nothing is left of them however the process ends.
    """

    def __init__(self, num_rows: int) -> None:
        """`num_rows`: how many keys will be added."""
        self.problem = ""
        """Why the keys could not be kept; empty if they could."""
        self._num_rows = num_rows
        self._bits = 0
        """The bits of a partition's number."""
        self._files: list[BinaryIO] = []
        """One for each partition; none if the keys are in memory."""
        self._open_files = ExitStack()
        self._added: list[Keys] = []
        """Keys that are in no file."""
        self._num_added = 0
        self._adding = Lock()

    def __enter__(self) -> "RowKeys":
        if self._num_rows > MAX_IN_MEMORY:
            num_partitions = min(-(-self._num_rows // PARTITION_ROWS), MAX_PARTITIONS)
            self._bits = max(1, (num_partitions - 1).bit_length())
            with self._giving_up(), ExitStack() as files:
                free = shutil.disk_usage(tempfile.gettempdir()).free
                if free < self._num_rows * _KEY_BYTES:
                    raise OSError(f"it has {size_text(free)} free")
                self._files = [files.enter_context(tempfile.TemporaryFile()) for _ in range(2**self._bits)]
                self._open_files = files.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        with suppress(OSError):  # What a full disk did not take is not missed.
            self._open_files.close()
        self._files, self._added = [], []

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Where the files cannot be written or read, note why and forget all keys."""
        try:
            yield
        except OSError as error:
            self.problem = (
                f"this takes {size_text(self._num_rows * _KEY_BYTES)} in the folder for temporary files "
                f"({error}); name another folder with TMPDIR"
            )
            self._close()

    def add(self, keys: Keys) -> None:
        """Keep the keys of some rows."""
        with self._adding:
            if self.problem:
                return
            self._added.append(keys)
            self._num_added += len(keys)
            if self._files and self._num_added >= BUFFERED_ROWS:
                with self._giving_up():
                    self._write()

    def _write(self) -> None:
        """Write all keys that are in memory to the files of their partitions."""
        keys = np.concatenate([_NO_KEYS, *self._added])
        self._added, self._num_added = [], 0
        spread = keys.view(np.uint64) * _GOLDEN
        partitions = (spread >> np.uint64(64 - self._bits)).astype(np.uint8)
        order = np.argsort(partitions, kind="stable")
        ends = np.cumsum(np.bincount(partitions, minlength=len(self._files)))
        for file, of_file in zip(self._files, np.split(keys[order], ends[:-1]), strict=True):
            file.write(of_file.data)
            file.flush()

    def repeated(self, max_keys: int) -> tuple[Keys, int]:
        """(keys that several rows have, how many rows have the key of another one that counts as the first).

        At most `max_keys` keys; none where there is a problem.
        """
        with self._giving_up():
            if self._files:
                self._write()
            repeated_keys, num_repetitions = _NO_KEYS, 0
            for chunks in self._partitions():
                of_partition, num_of_partition = _repeated_in(chunks)
                repeated_keys = np.concatenate([repeated_keys, of_partition])[:max_keys]
                num_repetitions += num_of_partition
            return repeated_keys, num_repetitions
        return _NO_KEYS, 0

    def _partitions(self) -> Iterator[Iterator[Keys]]:
        """The keys of each partition, in chunks. Equal keys are in one partition."""
        if not self._files:
            keys, self._added = np.concatenate([_NO_KEYS, *self._added]), []
            yield iter([keys])
        for file in self._files:
            file.seek(0)
            yield _chunks(file)


def _chunks(file: BinaryIO) -> Iterator[Keys]:
    while data := file.read(CHUNK_ROWS * _KEY_BYTES):
        yield np.frombuffer(data, np.int64)


def _repeated_in(chunks: Iterator[Keys]) -> tuple[Keys, int]:
    """(the repeated keys in order, the number of repetitions). Of earlier chunks, each key is kept once."""
    known, repeated_keys, num_repetitions = _NO_KEYS, _NO_KEYS, 0
    for chunk in chunks:
        ordered = np.concatenate([known, chunk])
        ordered.sort()
        is_repeated = np.zeros(len(ordered), bool)
        np.equal(ordered[1:], ordered[:-1], out=is_repeated[1:])
        num_repetitions += int(is_repeated.sum())
        repeated_keys = np.union1d(repeated_keys, ordered[is_repeated])
        known = ordered[~is_repeated]
    return repeated_keys, num_repetitions
