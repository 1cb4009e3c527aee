"""Processes and threads in simulated time: one greenlet runs at a time, in an order that the seed decides.

The code under test runs unchanged. Each function that it calls may put its thread to sleep, end its process,
or let another thread run first.
"""

import heapq
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from greenlet import getcurrent, greenlet

MAX_EVENTS = 100_000
"""The most events of one simulation: about a hundred times as many as it needs."""


class ViolationError(AssertionError):
    """Something happened that the protocol forbids."""


class Killed(BaseException):
    """Ends the threads of a dead process; no code under test catches it."""


class Clock:
    """The simulated time, and the events to come."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.hub = getcurrent()
        self.running: Thread | None = None
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serials = count()

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call the function after this delay."""
        event = (self.now_s + delay_s, next(self._serials), call, arguments)
        heapq.heappush(self._events, event)

    def run(self) -> None:
        """Run all events, until none is left."""
        for _ in range(MAX_EVENTS):
            if not self._events:
                return
            self.now_s, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
        raise ViolationError(f"the simulation does not end: {MAX_EVENTS:,} events, {self.now_s:,.0f} s")

    @property
    def thread(self) -> "Thread":
        """The thread that is running."""
        assert self.running is not None, "only threads of the simulation may use this"
        return self.running


class Process:
    """A simulated process: threads that die together."""

    def __init__(
        self, clock: Clock, name: str, *, when_it_dies: Callable[["Process"], None] | None = None
    ) -> None:
        self.clock = clock
        self.name = name
        self.alive = True
        self.heard = True
        """Whether others hear from it; if not, they take it for dead, although it may live."""
        self._when_it_dies = when_it_dies
        self._threads: list[Thread] = []

    def start(self, call: Callable[..., None], *arguments: Any) -> None:
        """Start a thread now."""
        thread = Thread(self, call, arguments)
        self._threads.append(thread)
        thread.wake()

    def cut_off(self) -> None:
        """Let others take the process for dead, although it goes on."""
        if self.heard:
            self.heard = False
            if self._when_it_dies:
                self._when_it_dies(self)

    def kill(self) -> None:
        """End all threads of the process at once; raise Killed if the caller is one of them."""
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
        """The number of the commit that it is carrying out."""
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
        """Let other threads run for this time, or until another thread wakes this one if it is None."""
        if seconds is not None:
            self._clock.after(seconds, self._go_on, self._num_stops + 1)
        self._num_stops += 1
        self._clock.hub.switch()

    def wake(self) -> None:
        """Let the thread go on as soon as the caller sleeps, unless it has gone on by then."""
        self._clock.after(0.0, self._go_on, self._num_stops)

    def _go_on(self, stop: int) -> None:
        if stop != self._num_stops or self._greenlet.dead:
            return
        self._num_stops += 1
        self._clock.running = self
        if self.process.alive:
            self._greenlet.switch()
        else:
            # A thread that has not started cannot catch the exception.
            with suppress(Killed):
                self._greenlet.throw(Killed)
        self._clock.running = None
