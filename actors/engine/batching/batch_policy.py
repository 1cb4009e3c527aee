"""Whose turn it is: which suspended calls go through a module next, and when another call is begun.

Pure state: no torch, no clock, no chance. The same calls give the same batches.
"""

from collections.abc import Hashable, Iterable, Sequence
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

MAX_BATCH_KEYS = 4
"""Batch keys, such as image sizes, whose denoising batches are kept full at the same time."""


class Stage(IntEnum):
    """The stage of a call to which a module belongs; it decides whose turn it is."""

    ENCODE = 0
    """Text and image encoders: each is called once, before the denoiser."""
    CONTROL = 1
    """ControlNets: each is called before the denoiser at the steps that it guides."""
    DENOISE = 2
    """The UNet: it is called at every step, and its batches should be full."""
    DECODE = 3
    """Decoders and checkers: each is called once, after the last step."""


class Suspended(Protocol):
    """A call that waits at a merge point."""

    @property
    def stage(self) -> Stage:
        """The stage of the module that it waits for."""

    @property
    def batch_key(self) -> Hashable:
        """Calls with equal batch keys can go through the module together."""

    @property
    def rows(self) -> int:
        """How many rows of a batch the call takes."""

    @property
    def module_rows(self) -> int:
        """How many rows the module gets: with guidance two for each row of the call."""

    @property
    def max_module_rows(self) -> int | None:
        """The most rows with this batch key that fit in memory together; None while that is not known."""


SuspendedT = TypeVar("SuspendedT", bound=Suspended)
Group = list[SuspendedT]
"""Suspended calls with one batch key, the oldest first."""


class BatchPolicy(Generic[SuspendedT]):
    """Decides so that the denoiser's batches are full. A batch has at most `max_rows` rows."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._filling = True

    def groups(self, suspended: Iterable[SuspendedT]) -> list[list[Group[SuspendedT]]]:
        """For each stage the groups that wait there, the fullest first, then the oldest."""
        stages: list[dict[Hashable, Group[SuspendedT]]] = [{} for _ in Stage]
        for call in suspended:
            stages[call.stage].setdefault(call.batch_key, []).append(call)
        return [sorted(groups.values(), key=num_rows, reverse=True) for groups in stages]

    def wants_more(self, groups: list[list[Group[SuspendedT]]]) -> bool:
        """Whether another call should begin.

        Several calls begin together, so that encoding is merged too: from when a denoising batch would not be
        full, until the rows before and at the denoiser fill its batches and half of another.
        """
        encode, control, denoise, decode = groups
        upstream = sum(map(num_rows, [*encode, *control, *denoise]))
        if self._decoding_is_due(decode):
            return False
        if upstream >= self._max_rows // 2 + self._max_rows * min(max(1, len(denoise)), MAX_BATCH_KEYS):
            self._filling = False
        elif not encode and not control and (not denoise or num_rows(denoise[0]) < self._max_rows):
            self._filling = True
        return self._filling

    def next_batch(self, groups: list[list[Group[SuspendedT]]]) -> list[SuspendedT]:
        """The calls that go through their module next.

        Full denoising batches come first, then encoding and ControlNets, which fill the next ones. Decoding
        waits for half a batch of its own.
        """
        encode, control, denoise, decode = groups
        if self._decoding_is_due(decode):
            return self._fitting(decode[0])
        if denoise and num_rows(denoise[0]) >= self._max_rows:
            return self._fitting(denoise[0])
        return self._fitting((encode or control or denoise or decode)[0])

    def _decoding_is_due(self, decode: list[Group[SuspendedT]]) -> bool:
        """Whether half a batch with one batch key, or a whole batch with several, waits to be decoded."""
        rows = [*map(num_rows, decode)]
        return sum(rows) >= self._max_rows or 2 * max(rows, default=0) >= self._max_rows

    def _fitting(self, group: Group[SuspendedT]) -> list[SuspendedT]:
        """The calls of a group that fit into one batch; the oldest always does."""
        chosen = [group[0]]
        rows, module_rows = group[0].rows, group[0].module_rows
        limit = group[0].max_module_rows
        for call in group[1:]:
            fits = limit is None or module_rows + call.module_rows <= limit
            if fits and rows + call.rows <= self._max_rows:
                chosen.append(call)
                rows += call.rows
                module_rows += call.module_rows
        return chosen


def num_rows(calls: Sequence[SuspendedT]) -> int:
    """How many rows of a batch these calls take together."""
    return sum(call.rows for call in calls)
