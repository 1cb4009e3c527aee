"""Requests that are repeated, and what is told of them while they are."""

import pytest

from actors.storage.retries import WORTH_TELLING_S, long_wait, num_answers, repeat
from tests.support.s3.quick_waits import QuickWaits


class BusyError(Exception):
    """It may pass."""


def trouble_of(error: BaseException) -> str:
    return str(error) if isinstance(error, BusyError) else ""


def test_a_request_in_vain_is_told_once_it_has_taken_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the latest trouble. The log has every try."""
    waits = QuickWaits(monkeypatch)
    told: list[tuple[float, str]] = []

    def ask() -> int:
        told.append((sum(waits.seconds), long_wait()))
        if len(told) < 10:
            raise BusyError(f"busy {len(told)}")
        return 42

    assert repeat(ask, "get_object s3://b/k", trouble_of=trouble_of, deadline_s=900) == 42

    assert {text for seconds, text in told if seconds <= WORTH_TELLING_S} == {""}
    assert told[-1][1] == "get_object s3://b/k: busy 9"
    assert long_wait() == ""
    assert caplog.messages[0] == "retry attempt=1 wait_s=0.2 get_object s3://b/k: busy 1"


def test_the_longest_of_several_waits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request within another one stands for one of another thread."""
    waits = QuickWaits(monkeypatch)
    told: list[str] = []

    def inner() -> None:
        told.append(long_wait())
        if len(told) < 10:
            raise BusyError("inner")

    def outer() -> None:
        if not waits.seconds:
            raise BusyError("outer")
        repeat(inner, "second", trouble_of=trouble_of, deadline_s=900)

    repeat(outer, "first", trouble_of=trouble_of, deadline_s=900)

    assert told[-1] == "first: outer"


def test_an_error_that_will_not_pass_is_raised_at_once_and_forgotten() -> None:
    """Nothing waits after it."""
    errors = [BusyError("busy"), ValueError("wrong")]

    def ask() -> None:
        raise errors.pop(0)

    with pytest.raises(ValueError, match="wrong"):
        repeat(ask, "a request", trouble_of=trouble_of, deadline_s=900)

    assert long_wait() == ""


def test_only_a_request_that_succeeds_is_progress() -> None:
    """One that fails for ever must not pass for a worker that moves."""
    before = num_answers()

    with pytest.raises(BusyError):
        repeat(failing, "put_object", trouble_of=trouble_of, deadline_s=0)
    after_failure = num_answers()
    repeat(lambda: 42, "put_object", trouble_of=trouble_of, deadline_s=1)

    assert after_failure == before
    assert num_answers() != before


def failing() -> int:
    raise BusyError("busy")
