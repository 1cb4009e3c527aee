"""Processes and threads on a clock that nobody waits for: one greenlet runs at a time, in an order that the
seed alone decides.

Code that knows nothing of it runs here as it is: whatever it calls may put it to sleep, end its process, or
let another thread go first.
"""

import heapq
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from greenlet import getcurrent, greenlet

MAX_EVENTS = 100_000
"""Of one simulation: about a hundred times as many as it takes."""


class ViolationError(AssertionError):
    """Something happened that the protocol rules out."""


class Killed(BaseException):
    """Ends the threads of a process that is dead; no code under test catches it."""


class Clock:
    """What is to happen, by the second at which it does."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.hub = getcurrent()
        self.running: Thread | None = None
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serials = count()

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call it then."""
        event = (self.now_s + delay_s, next(self._serials), call, arguments)
        heapq.heappush(self._events, event)

    def run(self) -> None:
        """Until nothing is left to happen."""
        for _ in range(MAX_EVENTS):
            if not self._events:
                return
            self.now_s, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
        raise ViolationError(f"it does not come to an end: {MAX_EVENTS:,} events, {self.now_s:,.0f} s")

    @property
    def thread(self) -> "Thread":
        """The one that calls."""
        assert self.running is not None, "only threads of the simulation may ask"
        return self.running


class Process:
    """Threads that die together."""

    def __init__(
        self, clock: Clock, name: str, *, when_it_dies: Callable[["Process"], None] | None = None
    ) -> None:
        self.clock = clock
        self.name = name
        self.alive = True
        self.heard = True
        """False where it may live and is taken for dead."""
        self._when_it_dies = when_it_dies
        self._threads: list[Thread] = []

    def start(self, call: Callable[..., None], *arguments: Any) -> None:
        """A thread that begins now."""
        thread = Thread(self, call, arguments)
        self._threads.append(thread)
        thread.wake()

    def cut_off(self) -> None:
        """Let it go on where nobody hears it."""
        if self.heard:
            self.heard = False
            if self._when_it_dies:
                self._when_it_dies(self)

    def kill(self) -> None:
        """End every thread where it is; Killed where the caller is one of them."""
        if self.alive:
            self.alive = False
            for thread in self._threads:
                thread.wake()
            if self._when_it_dies:
                self._when_it_dies(self)
        if self.clock.running and self.clock.running.process is self:
            raise Killed


class Thread:
    """A greenlet and the process that it belongs to."""

    def __init__(self, process: Process, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.process = process
        self.commit: int | None = None
        """Which commit it is at."""
        self._clock = process.clock
        self._greenlet = greenlet(self._run, parent=self._clock.hub)
        self._call = call
        self._arguments = arguments
        self._num_stops = 0

    def _run(self) -> None:
        try:
            self._call(*self._arguments)
        except Killed:
            return

    def sleep(self, seconds: float | None) -> None:
        """Let others run; None: until somebody wakes this thread."""
        if seconds is not None:
            self._clock.after(seconds, self._go_on, self._num_stops + 1)
        self._num_stops += 1
        self._clock.hub.switch()

    def wake(self) -> None:
        """Go on as soon as the caller sleeps; nothing where this thread has gone on by then."""
        self._clock.after(0.0, self._go_on, self._num_stops)

    def _go_on(self, stop: int) -> None:
        if stop != self._num_stops or self._greenlet.dead:
            return
        self._num_stops += 1
        self._clock.running = self
        if self.process.alive:
            self._greenlet.switch()
        else:
            # A thread that has not begun cannot catch it.
            with suppress(Killed):
                self._greenlet.throw(Killed)
        self._clock.running = None
