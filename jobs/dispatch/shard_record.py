"""What has gone wrong with one shard so far, and what a worker is told to do with it next."""

from dataclasses import dataclass, field, replace

from jobs.dispatch.poison import Search
from schemas.errors import DEVICE_DEPENDENT
from schemas.job import Shard


@dataclass(frozen=True, slots=True)
class Place:
    """Where a shard was: a worker's process on a machine."""

    worker: str
    node: str
    process: int
    """A number that no other process has; a worker's successor has the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """What the death of a worker tells of it."""

    shard: int | None = None
    """The index of the shard that may be at fault; None if only the worker can be."""
    expected: bool = False
    """Whether it is no wonder: the rehearsed rows may kill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What is thought of a report that a worker has sent for a shard."""

    final: bool = True
    """Whether the shard is done. Else another worker tries the rows that failed."""
    failed_alone: Place | None = None
    """Where rows of the shard failed that have now been generated elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A committed part in which rows failed that another worker can perhaps generate."""

    place: Place
    num_rows: int


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
    refused_at: list[Place] = field(default_factory=list)
    """Where the job or its storage was said to be at fault."""
    doubt: Doubt | None = None
    """Set once a part is committed whose failed rows another worker is to try."""
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
    searches_in_vain: int = 0
    """Searches that have ended without a row."""
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
        if self.doubt:
            shard = replace(shard, again=_device_dependent(shard.again))
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


def _device_dependent(again: tuple[str, ...] | None) -> tuple[str, ...]:
    """The codes of rows that another worker tries; `again` are those that this run tries at all."""
    return tuple(sorted(DEVICE_DEPENDENT.intersection(again) if again else DEVICE_DEPENDENT))
