"""Which row of a shard takes its worker down: a binary search by rehearsals. Pure state, no Ray.

A rehearsal makes some rows of the shard and commits nothing; what is learnt is whether the worker lives.
"""

from collections import deque
from collections.abc import Iterable

MAX_ALONE = 4
"""Rows that are tried one by one before a search; where none of them lives, the rows are not at fault."""

RowRange = tuple[int, int]
"""Rows of a shard: the first one's place, and one past the last one's."""


class Search:
    """Looks for one row that kills, in a shard where something does.

    First a row goes alone, to show that one can live here: a broken driver, file or model would otherwise
    look like a shard full of bad rows. Then halves, each narrowed by what became of it. A row is found only
    by dying alone, so that a worker that died of something else cannot put the blame on it.
    """

    def __init__(self, rows: Iterable[int], *, one_has_lived: bool = False) -> None:
        """`rows`: those that may be at fault; `one_has_lived`: whether that was seen before."""
        self._suspects = [*rows]
        self._one_has_lived = one_has_lived
        num = min(MAX_ALONE, len(self._suspects))
        self._alone = deque(self._suspects[i * len(self._suspects) // num] for i in range(num))
        self.found: list[int] = []
        """Rows that took their worker down alone."""
        self.num_survived = 0
        """Rehearsals."""

    @property
    def next(self) -> RowRange | None:
        """What is to be rehearsed, without the rows found; None: the search has ended."""
        if not self._one_has_lived:
            return (self._alone[0], self._alone[0] + 1) if self._alone else None
        if self.found or not self._suspects:
            return None
        return self._suspects[0], self._suspects[(len(self._suspects) - 1) // 2] + 1

    @property
    def suspects(self) -> list[int]:
        """Rows that may still be at fault and are not found."""
        return self._suspects

    def died(self) -> None:
        """The rehearsal took its worker down."""
        rehearsed, others = self._parted()
        if len(rehearsed) == 1:
            self.found += rehearsed
        self._suspects = rehearsed if self._one_has_lived else others
        if not self._one_has_lived:
            self._alone.popleft()

    def survived(self) -> None:
        """The rehearsal was made."""
        _, self._suspects = self._parted()
        self._one_has_lived = True
        self.num_survived += 1

    def _parted(self) -> tuple[list[int], list[int]]:
        """The suspects that are rehearsed, and the others."""
        assert self.next is not None, "the search has ended"
        start, stop = self.next
        rehearsed = [row for row in self._suspects if start <= row < stop]
        return rehearsed, [row for row in self._suspects if not start <= row < stop]
