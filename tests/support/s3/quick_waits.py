"""The waits between tries of a request, which take no time in a test."""

import random
import threading
import time

import pytest


class QuickWaits:
    """The waits of the thread that makes it: each is as long as it may be at most, and over at once.

    This thread's clock advances by its waits alone. The clocks of other threads go on as they do.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: list[float] = []
        """The waits so far."""
        self._thread = threading.get_ident()
        self._sleep, self._monotonic = time.sleep, time.monotonic
        self._begun = time.monotonic()
        monkeypatch.setattr(time, "sleep", self._wait)
        monkeypatch.setattr(time, "monotonic", self._now)
        monkeypatch.setattr(random, "uniform", lambda low, high: high)

    def pass_seconds(self, seconds: float) -> None:
        """Let this thread's clock advance, as a wait does."""
        self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        if threading.get_ident() == self._thread:
            self.seconds.append(seconds)
        else:
            self._sleep(seconds)

    def _now(self) -> float:
        if threading.get_ident() == self._thread:
            return self._begun + sum(self.seconds)
        return self._monotonic()
