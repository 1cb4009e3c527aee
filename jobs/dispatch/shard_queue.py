"""The waiting shards of one model, and which of them comes next."""

from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from schemas.job import Shard

MAX_DYING_SHARDS = 5
"""Shards of one model that kill workers in a row, with none generated in between. If then the rows of one of
them cannot be generated alone either, the job ends."""


class Shards(Protocol):
    """Shards by their position, such as a list. They can be made when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int, /) -> Shard: ...


class ShardQueue:
    """One model's waiting shards: first those that were given back, then those that no worker had yet.

    Each worker has a stretch of the latter, so that its next shard is the neighbour of its last one: whoever
    reads a part of a Parquet file's row group reads what is before it too. A worker whose stretch is done
    takes half of the longest other one.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._num_fresh = len(shards)
        self._stretches: dict[str | None, range] = {None: range(len(shards))} if len(shards) else {}
        """Positions of shards that no worker had yet, by worker; under None before any worker has asked.

        What a worker leaves when it ends is for its successor of the same name, and for whoever has time.
        """
        self._returned: deque[Shard] = deque()
        self._suspects: deque[Shard] = deque()
        self.dying: set[int] = set()
        """Indices of the shards with which a worker died since the last sign of life."""
        self.works = False
        """Whether there ever was a sign of life: a generated shard or a survived rehearsal."""

    @property
    def num_left(self) -> int:
        """Waiting shards."""
        return self.num_unsuspected + len(self._suspects)

    @property
    def num_unsuspected(self) -> int:
        """Waiting shards with which no worker has died."""
        return self._num_fresh + len(self._returned)

    def take(self, worker: str, fits: Callable[[Shard], bool], *, beside: bool) -> Shard | None:
        """The next shard that fits this worker, if there is one.

        None too if it is a suspect and the worker has another shard (`beside`).
        """
        if self._is_suspects_turn() and (suspect := _first(self._suspects, fits)):
            if beside:
                return None
            self._suspects.remove(suspect)
            return suspect
        if returned := _first(self._returned, fits):
            self._returned.remove(returned)
            return returned
        if not self._num_fresh:
            return None
        self._num_fresh -= 1
        return self._shards[self._next_position(worker)]

    def _next_position(self, worker: str) -> int:
        """The position of the worker's next shard that no worker had yet; there must be such a shard."""
        stretch = self._stretches.pop(worker, None) or self._taken_over()
        if len(stretch) > 1:
            self._stretches[worker] = stretch[1:]
        return stretch[0]

    def _taken_over(self) -> range:
        """The second half of the longest stretch, or all of it if no worker works on it."""
        owner = max(self._stretches, key=lambda name: len(self._stretches[name]))
        stretch = self._stretches.pop(owner)
        half = 0 if owner is None else len(stretch) // 2
        if half:
            self._stretches[owner] = stretch[:half]
        return stretch[half:]

    def _is_suspects_turn(self) -> bool:
        """Whether the next shard is a suspect.

        After a death another shard comes first, to show whether any shard of the model can be generated.
        After MAX_DYING_SHARDS deaths in a row the suspects come, to show why.
        """
        return not self.num_unsuspected or not self.dying or len(self.dying) >= MAX_DYING_SHARDS

    def give_back(self, shard: Shard, *, suspect: bool) -> None:
        """Take a shard back; `suspect`: a worker died with it."""
        if suspect:
            # The same suspect comes first again: if none can be generated, the first one abandoned shows it.
            self._suspects.appendleft(shard)
        else:
            self._returned.append(shard)

    def lives(self) -> None:
        """Record a sign of life."""
        self.works = True
        self.dying.clear()


def _first(shards: Collection[Shard], fits: Callable[[Shard], bool]) -> Shard | None:
    return next(filter(fits, shards), None)
