"""A pytest plugin: a test that fails is a test that fails, and never an internal error of pytest."""

import signal
import sys
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, object, object]:
    """Stop the time limit while a report is made: what it interrupts there ends the whole of pytest 9."""
    left = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)


@pytest.hookimpl(wrapper=True)
def pytest_unconfigure() -> Generator[None, object, object]:
    """Say in a line what the last test left open; pytest 9 would show a traceback of its own code."""
    try:
        return (yield)
    except (Warning, ExceptionGroup) as error:
        sys.stderr.write(f"left open by the last test: {error}\n")
        raise SystemExit(pytest.ExitCode.TESTS_FAILED) from None
