"""Requests that are repeated until they succeed or a deadline has passed, and what they wait for now."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

logger = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 20.0
"""The longest wait after the first try, which doubles with each further one, and the longest of all."""
WORTH_TELLING_S = 10.0
"""How long a request has been in vain before anybody is told."""

T = TypeVar("T")
_num_answers = 0


@dataclass(frozen=True, slots=True)
class _Wait:
    since: float
    trouble: str


_waits: dict[object, _Wait] = {}
"""The requests of this process that have failed so far."""


def repeat(
    ask: Callable[[], T],
    subject: str,
    *,
    trouble_of: Callable[[BaseException], str],
    deadline_s: float,
) -> T:
    """What `ask` returns. While it raises what may pass, it is called again, until `deadline_s` has passed.

    `trouble_of` says of an error in one line what is wrong; empty for one that will not pass. The last error
    is raised as it is.
    """
    request, began = object(), time.monotonic()

    def note(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        trouble = f"{subject}: {trouble_of(error) if error else ''}"
        _waits[request] = _Wait(began, trouble)
        logger.warning("retry attempt=%d wait_s=%.1f %s", state.attempt_number, state.upcoming_sleep, trouble)

    retrying = Retrying(
        retry=retry_if_exception(lambda error: bool(trouble_of(error))),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=stop_before_delay(deadline_s),
        before_sleep=note,
        reraise=True,
    )
    global _num_answers
    try:
        answer = retrying(ask)
        # Requests that end at the same moment may count as one: only a change of the number matters.
        _num_answers += 1
        return answer
    finally:
        _waits.pop(request, None)


def num_answers() -> int:
    """A number that changes whenever a request of this process succeeds: a large part takes many of them."""
    return _num_answers


def long_wait() -> str:
    """The oldest request of this process that has failed for a while, and why; empty if there is none."""
    waits = [wait for wait in [*_waits.values()] if time.monotonic() - wait.since > WORTH_TELLING_S]
    return min(waits, key=lambda wait: wait.since).trouble if waits else ""
