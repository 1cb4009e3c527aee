"""Ctrl-C and SIGTERM inside a driver's block."""

import signal
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from jobs.signals import CLEAN_UP_S, Interrupted, stopping_signals


def own_handler(number: int, frame: FrameType | None) -> None:
    """The handler of whoever uses darkroom as a library."""


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    before = {number: signal.signal(number, own_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_block_and_the_handlers_of_before_are_back(number: int) -> None:
    """Every `with` block inside is left as after an exception."""
    with pytest.raises(Interrupted), stopping_signals():
        signal.raise_signal(number)

    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is own_handler


def test_the_handlers_of_before_are_back_after_a_block_without_a_signal() -> None:
    """And within it they are not called."""
    with stopping_signals():
        assert signal.getsignal(signal.SIGINT) is not own_handler

    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is own_handler


@pytest.mark.parametrize(("later_s", "is_broken_off"), [(0.5 * CLEAN_UP_S, False), (1.5 * CLEAN_UP_S, True)])
def test_a_second_signal_breaks_off_only_a_clean_up_that_hangs(
    later_s: float, is_broken_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An impatient user presses Ctrl-C three times."""
    now_s = time.monotonic()
    cleaned_up = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            monkeypatch.setattr(time, "monotonic", lambda: now_s + later_s)
            signal.raise_signal(signal.SIGINT)
            cleaned_up.append(True)

    with pytest.raises(Interrupted), stopping_signals():
        work()

    assert cleaned_up == ([] if is_broken_off else [True])
