"""The time that a benchmark may take, and an end to whatever runs when it is over."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_S = 5.0
"""How long an interrupted block may take to end."""


class OutOfTime(BaseException):
    """The budget is spent. As with a KeyboardInterrupt, no code may take it for an error of its own."""


class Budget:
    """A number of seconds from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left_s(self) -> float:
        """The seconds that are left; below zero when the budget is spent."""
        return self._end - self._clock()

    @contextmanager
    def interrupting(self, give_up: Callable[[], None], grace_s: float = GRACE_S) -> Iterator[None]:
        """Raise OutOfTime in the block at the budget's end. The block runs in the main thread.

        If it has not ended `grace_s` later, `give_up` is called: it may wait for another thread, which cannot
        be interrupted, such as one that compiles.
        """
        interrupted = False

        def interrupt(signum: int, frame: FrameType | None) -> None:
            nonlocal interrupted
            if interrupted:
                give_up()
            interrupted = True
            raise OutOfTime

        if self.left_s <= 0:
            raise OutOfTime
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, self.left_s, grace_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
