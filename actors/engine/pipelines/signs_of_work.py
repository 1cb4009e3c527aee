"""Signs that a checkpoint is still being downloaded or loaded, however long that takes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from actors.process import bytes_moved

LEAST_CPU = 0.05
"""The share of a core above which a process works; that of an idle Ray 2.60 actor is below 0.01."""
LEAST_BYTES_PER_S = 10_000
"""The rate above which bytes arrive; an idle actor moves a hundred a second."""


@dataclass(frozen=True, slots=True)
class _Sample:
    seconds: float
    cpu_seconds: float
    bytes_moved: int
    bytes_in_folder: int


class SignsOfWork:
    """Counts the moments at which work went on, as another thread looks from time to time."""

    def __init__(self) -> None:
        self._count = 0
        self.phase = ""
        """What is going on within the block; empty outside of one."""
        self._folder: Path | None = None
        self._last: _Sample | None = None

    @contextmanager
    def watched(self, folder: Path | None = None, phase: str = "") -> Iterator[None]:
        """Look for signs within the block. `folder`: what arrives there is a sign too, whoever brings it.

        `phase`: what goes on in it, in words for people.
        """
        self._folder, self._last, self.phase = folder, _sample(folder), phase
        try:
            yield
        finally:
            self._last, self.phase = None, ""

    @property
    def count(self) -> int:
        """A number that has grown if there was a sign since it was last asked for."""
        last = self._last
        if last:
            now = _sample(self._folder)
            self._count += _worked(last, now)
            # The block may have ended meanwhile.
            self._last = now if self._last else None
        return self._count


def _worked(last: _Sample, now: _Sample) -> bool:
    seconds = now.seconds - last.seconds
    num_bytes = max(now.bytes_moved - last.bytes_moved, now.bytes_in_folder - last.bytes_in_folder)
    return now.cpu_seconds - last.cpu_seconds > LEAST_CPU * seconds or num_bytes > LEAST_BYTES_PER_S * seconds


def _sample(folder: Path | None) -> _Sample:
    return _Sample(time.monotonic(), time.process_time(), bytes_moved(), _size_bytes(folder))


def _size_bytes(folder: Path | None) -> int:
    """The size of the files in a repository's folder of the Hub's cache, unfinished ones included."""
    if folder is None:
        return 0
    with suppress(OSError), os.scandir(folder / "blobs") as files:
        return sum(file.stat().st_size for file in files)
    return 0
