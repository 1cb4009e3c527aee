"""Facts about how pytest ends when tests of ours fail."""

from pathlib import Path

from tests.support.running import ROOT, Finished, Started

CONFIG = "[pytest]\nfilterwarnings = error\naddopts = -p tests.support.clean_ends -p no:cacheprovider\n"
SLOW_REPORT = """
import time
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport():
    time.sleep(1.5)  # a long report of a failure

@pytest.mark.timeout(1)
def test_that_fails():
    assert False

def test_after_it():
    pass
"""
LEFT_OPEN = """
import socket
import time
import pytest

@pytest.mark.timeout(1)
def test_that_fails():
    server = socket.create_server(("127.0.0.1", 0))
    time.sleep(60)
"""


def pytest_on(source: str, folder: Path, *arguments: str) -> Finished:
    (folder / "pytest.ini").write_text(CONFIG)
    (folder / "conftest.py").write_text(source)
    (folder / "test_it.py").write_text("from conftest import *")
    with Started("-m", "pytest", *arguments, cwd=folder, PYTHONPATH=str(ROOT)) as run:
        return run.wait()


def test_a_time_limit_that_ends_while_a_failure_is_reported_ends_nothing_else(tmp_path: Path) -> None:
    """The failure is reported, and the next test runs."""
    finished = pytest_on(SLOW_REPORT, tmp_path)

    assert "INTERNALERROR" not in finished.out + finished.err
    assert "1 failed, 1 passed" in finished.out
    assert finished.code == 1


def test_what_the_last_test_left_open_is_told_in_a_line(tmp_path: Path) -> None:
    """Pytest keeps what a failed test used until it ends itself."""
    finished = pytest_on(LEFT_OPEN, tmp_path)

    assert "1 failed" in finished.out
    assert finished.err.startswith("left open by the last test: ")
    assert "Traceback" not in finished.err
    assert finished.code == 1
