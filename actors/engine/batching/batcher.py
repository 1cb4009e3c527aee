"""Continuous batching: calls run side by side, and their calls of shared modules are merged.

Each call runs unchanged in a greenlet. Where it calls a module that is a merge point, it is suspended. Calls
that are suspended at one module with equal batch keys go through it in one batch, and each is resumed with
its rows of the result. There is one thread and no chance, and no clock decides: the same calls give the same
batches.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any, Generic, Protocol, TypeVar

import torch
from greenlet import getcurrent, greenlet

from actors.engine.batching.batch_policy import BatchPolicy, Stage, num_rows
from actors.engine.batching.merged_modules import CallCount, MergedModule, MergePoint, Raised, Request
from actors.engine.batching.stage_seconds import StageSeconds
from actors.engine.quirks.torch_errors import ends_the_run

CPU = torch.device("cpu")


class Call(Protocol):
    """Something to run, such as a pipeline call."""

    @property
    def rows(self) -> int:
        """How many rows of a batch the call takes."""

    def __call__(self) -> Any:
        """Run to the end, and return the value."""


CallT = TypeVar("CallT", bound=Call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[CallT]):
    """The value or the error with which a call ended."""

    call: CallT
    value: Any = None
    error: Exception | None = None


class _Running(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A call that has begun."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.call: Any = call


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _SuspendedCall:
    """A call that waits for a module."""

    running: _Running
    module: MergedModule
    request: Request

    @property
    def rows(self) -> int:
        """How many rows of a batch the call takes."""
        return self.request.images

    @property
    def stage(self) -> Stage:
        """The stage of the module that the call waits for."""
        return self.module.point.stage

    @property
    def batch_key(self) -> Hashable:
        """Equal for calls that can go through the module together."""
        return self.request.batch_key

    @property
    def module_rows(self) -> int:
        """How many rows the module gets."""
        return self.request.rows

    @property
    def max_module_rows(self) -> int | None:
        """The most rows with this batch key that fit in memory together; None while that is not known."""
        return self.module.max_rows.get(self.request.batch_key)


def _current_call() -> Any:
    """The call that is running; None outside of calls."""
    current = getcurrent()
    return current.call if isinstance(current, _Running) else None


def _suspend(module: MergedModule, request: Request) -> Any:
    """Suspend the current call until the module has run, and return its answer."""
    running = getcurrent()
    return running.parent.switch(_SuspendedCall(running=running, module=module, request=request))


class Batcher(Generic[CallT]):
    """Runs calls side by side; at most `max_rows` of their rows go through a module together.

    It is used by one thread and for one run. The caller of `run` sets `torch.inference_mode` around it: calls
    set and reset such modes themselves, while other calls are between their beginnings and their ends.
    """

    def __init__(
        self,
        points: Sequence[MergePoint],
        max_rows: int,
        ladder: Sequence[int] = (),
        device: torch.device = CPU,
    ) -> None:
        """`ladder`: the numbers of images, ascending, to which the denoiser's batches are padded."""
        self.seconds = StageSeconds(device)
        self._modules = [MergedModule(point, ladder) for point in points]
        self._policy: BatchPolicy[_SuspendedCall] = BatchPolicy(max_rows)
        self._alive: dict[_Running, _SuspendedCall | None] = {}
        """The calls that have not ended, in the order in which they began, and where each is suspended."""
        self.stage: Stage | None = None
        """The stage of the module that runs or ran last; None before the first."""

    @property
    def counts(self) -> dict[str, CallCount]:
        """The counts of each merge point, by its name."""
        return {module.point.name: module.count for module in self._modules}

    def run(self, next_call: Callable[[], CallT | None]) -> Iterator[Outcome[CallT]]:
        """Yield every call's outcome. If there is no next call, `next_call` is asked again after an outcome.

        A module's error becomes the outcome of only those calls for which the module fails alone.
        """
        with ExitStack() as stack:
            for module in self._modules:
                stack.enter_context(module.patched(_current_call, _suspend))
            stack.callback(self._abandon)
            more = True
            while more or self._alive:
                groups = self._policy.groups(call for call in self._alive.values() if call is not None)
                if more and self._policy.wants_more(groups):
                    call = next_call()
                    more = call is not None
                    outcomes = [] if call is None else [self._resume(self._begin(call))]
                else:
                    outcomes = self._advance(self._policy.next_batch(groups))
                for outcome in filter(None, outcomes):
                    more = True
                    yield outcome

    def _begin(self, call: CallT) -> _Running:
        running = _Running(call)
        self._alive[running] = None
        return running

    def _advance(self, batch: list[_SuspendedCall]) -> list[Outcome[CallT] | None]:
        """Run a module for these calls, and resume each until it is suspended again or ends."""
        module = batch[0].module
        self.stage = module.point.stage
        module.count.images += num_rows(batch)
        with self.seconds.timed(self.stage):
            answers = module.answers([suspended.request for suspended in batch])
        return [
            self._resume(suspended.running, answer) for suspended, answer in zip(batch, answers, strict=True)
        ]

    def _resume(self, running: _Running, *answer: Any) -> Outcome[CallT] | None:
        """Resume a call, and return its outcome; None if it is suspended again."""
        try:
            if answer and isinstance(answer[0], Raised):
                returned = running.throw(answer[0].error)
            else:
                returned = running.switch(*answer)
        except Exception as error:
            if ends_the_run(error):
                raise
            # The frames hold the call's tensors, and the outcome may be kept for a while.
            clear_frames(error.__traceback__)
            del self._alive[running]
            return Outcome(call=running.call, error=error)
        if running.dead:
            del self._alive[running]
            return Outcome(call=running.call, value=returned)
        self._alive[running] = returned
        return None

    def _abandon(self) -> None:
        for running in self._alive:
            # What a call raises now is of no use to anyone, and must not keep the other calls from ending.
            with suppress(Exception):
                running.throw()
        self._alive.clear()
