"""SIGINT and SIGTERM as an exception, so that every `with` block that they end cleans up."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CLEAN_UP_S = 15.0
"""How long after a signal further signals are ignored."""


class Interrupted(BaseException):
    """The user or the system asked the program to stop; committed parts stay."""


@contextmanager
def stopping_signals() -> Iterator[None]:
    """Inside the block, SIGINT (Ctrl-C) and SIGTERM (`ray job stop`) raise Interrupted."""
    last_signal = float("-inf")

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last_signal
        # A second Ctrl-C must not break off the clean-up after the first one, unless the clean-up hangs.
        if time.monotonic() - last_signal > CLEAN_UP_S:
            last_signal = time.monotonic()
            # Ray 2.60 swallows every other exception that a signal handler raises inside its calls.
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
