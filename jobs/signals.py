"""SIGINT and SIGTERM as an exception, so that every `with` on the way out does its work."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CLEAN_UP_S = 15.0
"""For so long after a signal no other one is heard."""


class Interrupted(BaseException):
    """Somebody asked the program to stop; what is committed stays."""


@contextmanager
def stopping_signals() -> Iterator[None]:
    """SIGINT (Ctrl-C) and SIGTERM (`ray job stop`) leave the block as Interrupted."""
    heard = float("-inf")

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        # A second Ctrl-C must not break off the clean-up that the first one began, unless that hangs.
        if time.monotonic() - heard > CLEAN_UP_S:
            heard = time.monotonic()
            # Ray 2.60 lets no other exception of a signal handler out of its own calls.
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
