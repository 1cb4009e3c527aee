"""Which row of a shard takes its worker down: a binary search by rehearsals. Pure state, no Ray.

A rehearsal generates some rows of the shard and commits nothing; it only shows whether the worker survives.
"""

from collections import deque
from collections.abc import Iterable

MAX_ALONE = 4
"""Rows that are tried one by one before a search; if each kills its worker, no single row is at fault."""

RowRange = tuple[int, int]
"""Rows of a shard: the position of the first row, and one past the position of the last."""


class Search:
    """Looks for one row that kills, in a shard where something does.

    First a row is rehearsed alone, to show that any row can be generated here: a broken driver, file or model
    would otherwise look like a shard full of bad rows. Then halves of the suspects are rehearsed, until one
    row is left. A row counts as found only if a worker dies with this row alone, so that a worker that died
    for another reason cannot put the blame on it.
    """

    def __init__(self, rows: Iterable[int], *, one_has_lived: bool = False) -> None:
        """`rows` may be at fault; `one_has_lived`: whether a rehearsal of this shard was survived before."""
        self._suspects = [*rows]
        self._one_has_lived = one_has_lived
        num = min(MAX_ALONE, len(self._suspects))
        self._alone = deque(self._suspects[i * len(self._suspects) // num] for i in range(num))
        self.found: list[int] = []
        """Rows that killed their worker alone."""
        self.num_survived = 0
        """Rehearsals that the worker survived."""

    @property
    def next(self) -> RowRange | None:
        """The rows to rehearse, `found` rows left out; None once the search has ended."""
        if not self._one_has_lived:
            return (self._alone[0], self._alone[0] + 1) if self._alone else None
        if self.found or not self._suspects:
            return None
        return self._suspects[0], self._suspects[(len(self._suspects) - 1) // 2] + 1

    @property
    def suspects(self) -> list[int]:
        """Rows that may still be at fault, `found` rows not among them."""
        return self._suspects

    def died(self) -> None:
        """Record that the rehearsal killed its worker."""
        rehearsed, others = self._parted()
        if len(rehearsed) == 1:
            self.found += rehearsed
        self._suspects = rehearsed if self._one_has_lived else others
        if not self._one_has_lived:
            self._alone.popleft()

    def survived(self) -> None:
        """Record that the worker survived the rehearsal."""
        _, self._suspects = self._parted()
        self._one_has_lived = True
        self.num_survived += 1

    def _parted(self) -> tuple[list[int], list[int]]:
        """The suspects in the present rehearsal, and the other suspects."""
        assert self.next is not None, "the search has ended"
        start, stop = self.next
        rehearsed = [row for row in self._suspects if start <= row < stop]
        return rehearsed, [row for row in self._suspects if not start <= row < stop]
