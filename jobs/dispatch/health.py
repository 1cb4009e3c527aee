"""Which workers and machines fail where others succeed: pure state, no Ray, no clock."""

from collections.abc import Hashable
from itertools import count

MAX_FAILURES = 3
"""Different shards in a row that fail at one place and nowhere else, while other places succeed."""


class Health:
    """The failures of some places, which are all of one kind: workers or machines."""

    def __init__(self) -> None:
        self._failed: dict[str, set[Hashable]] = {}
        """What has failed at a place since it last succeeded, and nowhere else."""
        self._places_of: dict[int, set[str]] = {}
        """Where each shard has failed."""
        self._successes_before: dict[str, int] = {}
        """Successes anywhere when a place began to fail."""
        self._num_successes = 0
        self._serials = count()

    def succeeded(self, place: str) -> None:
        """Record a sign of life."""
        self._num_successes += 1
        self.forgive(place)

    def failed(self, place: str, shard: int | None = None) -> None:
        """Record a failure with this shard, by its index, or a failure to start."""
        if shard is not None:
            places = self._places_of.setdefault(shard, set())
            places.add(place)
            if len(places) > 1:
                # Several places agree, so it is the shard.
                for other in places:
                    self._failed.get(other, set()).discard(shard)
                return
        if not self._failed.get(place):
            self._successes_before[place] = self._num_successes
        self._failed.setdefault(place, set()).add(("start", next(self._serials)) if shard is None else shard)

    def forgive(self, place: str) -> None:
        """Forget the failures of a place: something else was at fault."""
        self._failed.pop(place, None)

    def is_bad(self, place: str) -> bool:
        """Whether the place alone is at fault for what fails there."""
        failed = self._failed.get(place, ())
        return len(failed) >= MAX_FAILURES and self._num_successes > self._successes_before[place]
