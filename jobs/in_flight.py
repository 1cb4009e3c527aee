"""Work for threads, of which only a little is handed out at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_flight(
    function: Callable[[Item], Result], items: Iterable[Item], *, at_once: int
) -> Iterator[Result]:
    """The results of `function` for all items, in their order, from `at_once` threads.

    `ThreadPoolExecutor.map` takes all items before it gives the first result, and 2 kB of memory for each.
    """
    upcoming = iter(items)
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(at_once)
    try:
        pending.extend(pool.submit(function, item) for item in islice(upcoming, 2 * at_once))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(upcoming, 1))
            yield result
    finally:
        # After an error, or where nobody wants the rest, what has not begun is not begun.
        pool.shutdown(cancel_futures=True)
