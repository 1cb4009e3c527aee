"""Continuous batching: calls run side by side, and what they ask of shared modules is asked together.

Each call runs in a greenlet, as it is. Where it calls a module that is an entry point, it stops; calls that
have stopped at one module with arguments of one form go through it in one batch, and each goes on with its
rows of the result. One thread, no clock and no chance: the same calls give the same batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any, Generic, TypeVar

from greenlet import getcurrent, greenlet

from actors.engine.batching.merged_modules import CallCount, EntryPoint, MergedModule, Raised, Request, Stage
from actors.engine.quirks.torch_errors import is_fatal

T = TypeVar("T")

MAX_SHAPES = 4
"""Forms of main module calls that are kept full at the same time, such as image sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """Something to run."""

    make: Callable[[], T]
    rows: int
    """That it makes: what it takes of a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[T]):
    """What became of a call: its value or its error."""

    call: Call[T]
    value: T | None = None
    error: Exception | None = None


class _Running(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A call under way."""

    def __init__(self, call: Call[Any]) -> None:
        super().__init__(call.make)
        self.call = call


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stopped:
    """A call that waits for a module."""

    running: _Running
    module: MergedModule
    request: Request
    rows: int
    """What it takes of a batch. With guidance a module sees two rows for each row of the call; and pipelines
    encode pictures one by one, however many the call makes: so the fewer of the two."""


Group = list[_Stopped]
"""Calls that can go through a module together."""


def _within_call() -> bool:
    return isinstance(getcurrent(), _Running)


def _stop(module: MergedModule, request: Request) -> Any:
    """Called by a call: returns when its answer is there."""
    running = getcurrent()
    rows = min(request.rows, running.call.rows)
    return running.parent.switch(_Stopped(running=running, module=module, request=request, rows=rows))


class Batcher(Generic[T]):
    """Runs calls, of which at most `max_rows` rows go through a module together.

    For one thread, and for one run. Whoever calls `run` sets `torch.inference_mode` around it: each call sets
    and resets such modes where it begins and ends, in the midst of the others.
    """

    def __init__(self, entries: Sequence[EntryPoint], max_rows: int, ladder: Sequence[int] = ()) -> None:
        """`ladder`: batch sizes, ascending, to which the main modules' batches are padded."""
        self._modules = [MergedModule(entry, ladder) for entry in entries]
        self._max_rows = max_rows
        self._alive: dict[_Running, _Stopped | None] = {}
        """In the order in which they began, with where they have stopped."""
        self._filling = True

    @property
    def counts(self) -> dict[str, CallCount]:
        """What went through each entry point."""
        return {module.entry.name: module.count for module in self._modules}

    def run(self, next_call: Callable[[], Call[T] | None]) -> Iterator[Outcome[T]]:
        """Every call's outcome. When there is no next call it is asked again after the next outcome.

        A module's error is the error of the calls that meet it when they are asked alone.
        """
        with ExitStack() as stack:
            for module in self._modules:
                stack.enter_context(module.patched(_within_call, _stop))
            stack.callback(self._abandon)
            more = True
            while more or self._alive:
                groups = self._groups()
                if more and self._wants_more(groups):
                    call = next_call()
                    more = call is not None
                    outcomes = [] if call is None else [self._resume(self._begin(call))]
                else:
                    outcomes = self._advance(self._due(groups))
                for outcome in filter(None, outcomes):
                    more = True
                    yield outcome

    def _begin(self, call: Call[T]) -> _Running:
        running = _Running(call)
        self._alive[running] = None
        return running

    def _advance(self, due: Group) -> list[Outcome[T] | None]:
        """Ask a module for these calls, and let each go on to its next stop or its end."""
        module = due[0].module
        module.count.images += _rows(due)
        answers = module.answers([stopped.request for stopped in due])
        return [self._resume(stopped.running, answer) for stopped, answer in zip(due, answers, strict=True)]

    def _resume(self, running: _Running, *answer: Any) -> Outcome[T] | None:
        try:
            if answer and isinstance(answer[0], Raised):
                given = running.throw(answer[0].error)
            else:
                given = running.switch(*answer)
        except Exception as error:
            if is_fatal(error):
                raise
            # They have the call's tensors in them, and the outcome may be kept for a while.
            clear_frames(error.__traceback__)
            del self._alive[running]
            return Outcome(call=running.call, error=error)
        if running.dead:
            del self._alive[running]
            return Outcome(call=running.call, value=given)
        self._alive[running] = given
        return None

    def _abandon(self) -> None:
        for running in self._alive:
            # What a call raises on its way out is nobody's any more; the others are to be let out too.
            with suppress(Exception):
                running.throw()
        self._alive.clear()

    def _groups(self) -> list[list[Group]]:
        """The groups that wait at each stage, the fullest first, then the oldest."""
        stages: list[dict[Any, Group]] = [{} for _ in Stage]
        for stopped in self._alive.values():
            if stopped is not None:
                stages[stopped.module.entry.stage].setdefault(stopped.request.form, []).append(stopped)
        return [sorted(groups.values(), key=_rows, reverse=True) for groups in stages]

    def _wants_more(self, groups: list[list[Group]]) -> bool:
        """Calls are begun several at a time, so that what leads to the main module is merged too: whenever
        it would not be full, until half as many more as fill it are on their way."""
        before, main, after = groups
        upstream = sum(map(_rows, [*before, *main]))
        if self._after_is_due(after):
            return False
        if upstream >= self._max_rows // 2 + self._max_rows * min(max(1, len(main)), MAX_SHAPES):
            self._filling = False
        elif not before and (not main or _rows(main[0]) < self._max_rows):
            self._filling = True
        return self._filling

    def _due(self, groups: list[list[Group]]) -> Group:
        """The calls whose turn it is: full batches first; then what fills the main module; what comes after
        it waits for half a batch of its own."""
        before, main, after = groups
        if self._after_is_due(after):
            return self._fitting(after[0])
        if main and _rows(main[0]) >= self._max_rows:
            return self._fitting(main[0])
        return self._fitting((before or main or after)[0])

    def _after_is_due(self, after: list[Group]) -> bool:
        """Whether what comes after the main module has half a batch of one form, or a batch of several."""
        rows = [*map(_rows, after)]
        return sum(rows) >= self._max_rows or 2 * max(rows, default=0) >= self._max_rows

    def _fitting(self, group: Group) -> Group:
        """What goes into one batch of a group; the oldest always does."""
        chosen = [group[0]]
        rows, module_rows = group[0].rows, group[0].request.rows
        limit = group[0].module.max_rows.get(group[0].request.form)
        for stopped in group[1:]:
            fits = limit is None or module_rows + stopped.request.rows <= limit
            if fits and rows + stopped.rows <= self._max_rows:
                chosen.append(stopped)
                rows += stopped.rows
                module_rows += stopped.request.rows
        return chosen


def _rows(group: Group) -> int:
    return sum(stopped.rows for stopped in group)
