"""The reading of files that takes long, of which people are told now and then."""

import threading
import time
from collections.abc import Callable

from schemas.wording.amounts import size_text

TELL_AFTER_S, TELL_EVERY_S = 2.0, 10.0
"""How long files are read before anybody is told, and how often then, in seconds."""
MAX_PAUSE_S = 0.5
"""A longer time without a block is not spent on reading."""

_listeners: list[Callable[[str], None]] = []
"""Who is told: at most one."""


def tell_of_reading(tell: Callable[[str], None]) -> None:
    """Call `tell` with a line now and then while this process reads files for a long time."""
    _listeners[:] = [tell]


class LongReading:
    """All files of this process that are read for one purpose."""

    def __init__(self, purpose: str, max_pause_s: float = MAX_PAUSE_S) -> None:
        """`purpose`: what the files are read for, as the lines begin."""
        self._purpose = purpose
        self._max_pause_s = max_pause_s
        self._lock = threading.Lock()
        self._last_block = 0.0
        self._seconds = 0.0
        self._next_told = TELL_AFTER_S
        self._num_bytes = 0

    def add(self, name: str, num_bytes: int) -> None:
        """Count a block of the file of this name. Several threads may call this."""
        with self._lock:
            now = time.monotonic()
            pause = now - self._last_block
            self._last_block = now
            self._num_bytes += num_bytes
            self._seconds += pause if pause < self._max_pause_s else 0.0
            if self._seconds < self._next_told:
                return
            self._next_told = self._seconds + TELL_EVERY_S
            for tell in _listeners:
                tell(f"{self._purpose}: {size_text(self._num_bytes)} read, now {name}")
