"""What the pretended GPU notes: waits, copies and kernels, each with the code that asked for it."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType

import torch

from actors.engine.batching.merged_modules import MergedModule
from actors.engine.cohort_runner import CohortCall
from tests.support.running import ROOT

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


class Kind(Enum):
    """The kinds of events that are counted."""

    WAIT = "wait"
    """The host stands still until the device has done all the work that it was given."""
    COPY = "copy"
    """A copy from the host to the device. One from pageable memory is a wait too."""
    KERNEL = "kernel"
    """An operation on the device that computes something."""


class Stage(Enum):
    """How far a pipeline call has come."""

    START = "start"
    """Its texts and input images are encoded."""
    LOOP = "loop"
    """The UNet has been called."""
    END = "end"
    """The images are decoded, checked and copied to the host."""


STAGES = {"unet": Stage.LOOP, "vae.decoder": Stage.END, "safety_checker.vision_model": Stage.END}
"""The stage that begins when a call reaches the merge point of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvent:
    """Something that the device was asked for."""

    kind: Kind
    operation: str
    """Torch's name of the operation."""
    place: str
    """The two innermost lines of code outside torch that asked for it, as `file:line < file:line`."""
    row_id: str | None
    """The row for whose call it happened; None if for several at once, as in a merged batch."""
    stage: Stage | None
    """How far that call had come; None if it belongs to no call."""
    module: str | None
    """The merge point that the call is at, or that is answered for several calls; None outside of all."""


@dataclass(slots=True)
class _Progress:
    """How far a call has come."""

    call: CohortCall
    stage: Stage = Stage.START
    module: str | None = None
    """The merge point that it is at."""


class DeviceLog:
    """The events so far. Kernels within the merge points' modules are not noted: there are thousands."""

    def __init__(self) -> None:
        self.events: list[DeviceEvent] = []
        self.unet_calls: Counter[str | None] = Counter()
        """How often each row's call has come to the UNet: its row-steps."""
        self.module: str | None = None
        """The merge point whose module runs now."""
        self._progress: dict[int, _Progress] = {}
        """By the call's `id`. The calls are kept, so that no other call gets the same."""

    def clear(self) -> None:
        """Forget what has been noted."""
        self.events.clear()
        self.unet_calls.clear()
        self._progress.clear()

    def note(self, kind: Kind, operation: str) -> None:
        """Note an event of the code that runs now."""
        if self.module and kind is Kind.KERNEL:
            return
        call, answered = _current(sys._getframe(1))
        progress = None if call is None else self._progress_of(call)
        self.events.append(
            DeviceEvent(
                kind=kind,
                operation=operation,
                place="" if kind is Kind.KERNEL else _place(sys._getframe(1)),
                row_id=None if call is None else _row_id(call),
                stage=None if progress is None else progress.stage,
                module=answered if progress is None else progress.module,
            )
        )

    def arrive(self, merge_point: str) -> None:
        """Note that the current call has come to a merge point."""
        call, _ = _current(sys._getframe(1))
        if call is not None:
            progress = self._progress_of(call)
            progress.module = merge_point
            progress.stage = STAGES.get(merge_point, progress.stage)
            self.unet_calls[_row_id(call)] += merge_point == "unet"

    def leave(self) -> None:
        """Note that the current call goes on behind a merge point."""
        call, _ = _current(sys._getframe(1))
        if call is not None:
            self._progress_of(call).module = None

    @contextmanager
    def within(self, merge_point: str) -> Iterator[None]:
        """While the block runs, the module of this merge point does."""
        outer, self.module = self.module, merge_point
        try:
            yield
        finally:
            self.module = outer

    def _progress_of(self, call: CohortCall) -> _Progress:
        return self._progress.setdefault(id(call), _Progress(call))


def _current(frame: FrameType | None) -> tuple[CohortCall | None, str | None]:
    """The pipeline call that runs the current code, or the merge point that is answered for several calls.

    A call has a stack of its own, as a greenlet.
    """
    while frame is not None:
        if frame.f_code is CohortCall.__call__.__code__:
            return frame.f_locals["self"], None
        if frame.f_code is MergedModule.answers.__code__:
            return None, frame.f_locals["self"].point.name
        frame = frame.f_back
    return None, None


def _row_id(call: CohortCall) -> str | None:
    row_ids = {sample.opened.row.row_id for sample, _ in call.decoded}
    return row_ids.pop() if len(row_ids) == 1 else None


def _place(frame: FrameType | None) -> str:
    places: list[str] = []
    while frame is not None and len(places) < 2:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _HERE)) and "contextlib" not in file:
            name = file.removeprefix(f"{ROOT}/").partition("site-packages/")
            places.append(f"{name[2] or name[0]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(places)
