"""What has gone wrong with one shard so far, and what a worker is told to do with it next."""

from dataclasses import dataclass, field, replace

from jobs.dispatch.poison import Search
from schemas.job import Shard


@dataclass(frozen=True, slots=True)
class Place:
    """Where a shard was: a process on a machine."""

    node: str
    process: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """What the death of a worker tells of it."""

    shard: int | None = None
    """The index of the shard that may be at fault; None if only the worker can be."""
    expected: bool = False
    """Whether it is no wonder: the rehearsed rows may kill."""


@dataclass(slots=True)
class ShardRecord:
    """What has gone wrong with one shard."""

    attempts: int = 0
    """Failed attempts to generate it, or to run its present rehearsal."""
    departures: int = 0
    """Workers that were taken away while they had it."""
    suspect: bool = False
    """Whether a worker died with it: it then has a worker to itself, so that the next death is its own."""
    raised_at: set[str] = field(default_factory=set)
    """The machines whose workers could not generate it, and lived."""
    failed_at: list[Place] = field(default_factory=list)
    """Where it failed, or where its present rehearsal did: elsewhere it may succeed."""
    search: Search | None = None
    """The search for the row at fault, while it goes on."""
    died_alone: dict[int, Place] = field(default_factory=dict)
    """Where a worker died with this row alone, by the row's position in the shard."""
    accused: list[int] = field(default_factory=list)
    """Rows that were alone when a worker died, until each is tried once more elsewhere."""
    good_row: int | None = None
    """A row that lived alone: with it a process shows that it works."""
    shows_good_row: bool = False
    """Whether the present rehearsal is that of the good row."""
    deaths_of_good_row: int = 0
    """Deaths with the good row in a row."""
    num_convicted: int = 0
    """Rows in `skip` when the latest rows were accused."""
    skip: tuple[int, ...] = ()
    """Rows that killed a worker alone, by their position in the shard."""
    one_row_lived: bool = False
    """Whether a worker survived a rehearsal."""
    searched_in_vain: bool = False
    """Whether a search has ended without a row."""
    reason: str = ""
    """Why the last worker died."""

    @property
    def failed_nodes(self) -> set[str]:
        """The machines of `failed_at`."""
        return {place.node for place in self.failed_at}

    @property
    def present_search(self) -> Search:
        """The search to which the present rehearsal belongs."""
        assert self.search is not None, "a rehearsal belongs to a search"
        return self.search

    @property
    def needs_proven_worker(self) -> bool:
        """Whether the next death is evidence: that of a process that may die of anything says nothing."""
        return self.search is not None or bool(self.accused)

    def instruct(self, shard: Shard, *, proven: bool) -> Shard:
        """The shard with the rows to leave out and the rows to rehearse.

        A worker that is not `proven` must first survive a row that lived before, if there is one.
        """
        self.shows_good_row = self.good_row is not None and not proven
        if self.shows_good_row:
            return self._rehearsal_of(shard, self.good_row)
        if self.accused:
            return self._rehearsal_of(shard, self.accused[-1])
        if self.search:
            return replace(shard, skip=(*self.skip, *self.search.found), rehearse=self.search.next)
        return replace(shard, skip=self.skip, rehearse=None)

    def _rehearsal_of(self, shard: Shard, row: int | None) -> Shard:
        assert row is not None
        return replace(shard, skip=self.skip, rehearse=(row, row + 1))
