"""Which shard goes to whom next: pure state, no Ray, no clock, no I/O.

A shard whose worker dies goes to the next one alone. When it has done so `max_attempts` times, the row at
fault is searched for by rehearsals; then the shard is made without that row, which is recorded as failed.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.dispatch.poison import Search
from jobs.output.tally import Abandoned
from schemas.errors import DarkroomError
from schemas.job import Shard

SHARDS_IN_FLIGHT = 2
"""Per worker: while one is on the device, the next is read and the one before is written."""

MAX_POISON_ROWS = 16
"""Of one shard; what takes down more workers than that is no single row's fault."""

MAX_DYING_SHARDS = 5
"""Of one model, since one was made. If then no row of one of them can be made alone either, the job ends."""


MAX_DEPARTURES = 20
"""Workers taken away with the same shard: it does not fit into the time that they are given."""


@dataclass(slots=True)
class _Record:
    """What has gone wrong with one shard."""

    attempts: int = 0
    """To make it, or to rehearse what is being rehearsed."""
    departures: int = 0
    """Workers that were taken away with it."""
    suspect: bool = False
    """Whether a worker died with it: it is made alone, so that the next death tells about no other shard."""
    search: Search | None = None
    skip: tuple[int, ...] = ()
    one_row_lived: bool = False
    """Whether a rehearsal was survived."""
    searched_in_vain: bool = False
    reason: str = ""
    """Of the last death."""


class _Queue:
    """One model's shards: those that came back, then the formula's."""

    def __init__(self, shards: Iterator[Shard], num_fresh: int) -> None:
        self._fresh = shards
        self._num_fresh = num_fresh
        self._returned: deque[Shard] = deque()
        self._suspects: deque[Shard] = deque()
        self.dying: set[int] = set()
        """Shards with which a worker died since the last sign of life."""
        self.works = False
        """Whether there ever was a sign of life: a shard made, a rehearsal survived."""

    @property
    def num_left(self) -> int:
        return self._num_fresh + len(self._returned) + len(self._suspects)

    def take(self, *, beside: bool) -> Shard | None:
        """The next shard; `beside` another one in the same worker no suspect is given out."""
        if self._suspects and self._is_suspects_turn():
            return None if beside else self._suspects.popleft()
        if self._returned:
            return self._returned.popleft()
        self._num_fresh -= 1
        return next(self._fresh)

    def _is_suspects_turn(self) -> bool:
        """After a death another shard shows first whether any can be made; if many cannot, it is time to see
        why."""
        others = self._num_fresh + len(self._returned)
        return not others or not self.dying or len(self.dying) >= MAX_DYING_SHARDS

    def give_back(self, shard: Shard, *, suspect: bool) -> None:
        if suspect:
            # One after the other: where none can be made, the first that is given up on tells.
            self._suspects.appendleft(shard)
        else:
            self._returned.append(shard)

    def lives(self) -> None:
        self.works = True
        self.dying.clear()


class Dispatcher:
    """Hands out shards so that a worker keeps the model it has loaded, and finds out which rows kill."""

    def __init__(
        self,
        shards: Mapping[str, Iterator[Shard]],
        num_shards: Mapping[str, int],
        *,
        max_attempts: int,
        working: Collection[str] = (),
    ) -> None:
        """`shards`, and how many there are, by model; `working`: models of which parts are there already."""
        self._queues = {model: _Queue(shards[model], num_shards[model]) for model in shards}
        for model in self._queues.keys() & set(working):
            self._queues[model].works = True
        self._max_attempts = max_attempts
        self._in_flight: dict[str, list[Shard]] = {}
        self._model_of: dict[str, str] = {}
        self._records: dict[int, _Record] = {}
        self.abandoned: list[Abandoned] = []

    @property
    def num_waiting(self) -> int:
        """Shards that nobody works on."""
        return sum(queue.num_left for queue in self._queues.values())

    @property
    def num_in_flight(self) -> int:
        """Shards that some worker has."""
        return sum(len(shards) for shards in self._in_flight.values())

    @property
    def finished(self) -> bool:
        """Whether every shard is made or abandoned."""
        return not self.num_waiting and not self.num_in_flight

    def join(self, worker: str) -> None:
        """A worker is ready for work."""
        self._in_flight.setdefault(worker, [])

    def leave(self, worker: str) -> None:
        """A worker is gone for good, without fault of its shards: somebody else makes them."""
        for shard in self._in_flight.pop(worker, []):
            self._depart(shard)
        self._model_of.pop(worker, None)

    def take_back(self, worker: str, shard: Shard) -> None:
        """The worker does not make this shard, for it was told to end."""
        self._in_flight[worker].remove(shard)
        self._depart(shard)

    def _depart(self, shard: Shard) -> None:
        record = self._record_of(shard)
        record.departures += 1
        if record.departures < MAX_DEPARTURES:
            self._give_back(shard)
        else:
            self._abandon(
                shard,
                f"{record.departures} workers were taken away with it before it was made: it needs machines "
                "that stay longer, or, in an output of its own, a smaller batching.shard_rows",
            )

    def next_for(self, worker: str, loaded: Sequence[str] = ()) -> Shard | None:
        """A shard for this worker now, or None; `loaded` are the models in its memory, the latest last."""
        mine = self._in_flight[worker]
        if not self.num_waiting or len(mine) >= self._room(mine) or any(map(self._is_suspect, mine)):
            return None
        model = self._choose(worker, loaded)
        if mine and mine[-1].model != model:
            return None  # two models in flight could push each other out of a small cache, shard by shard
        taken = self._queues[model].take(beside=bool(mine))
        if taken is None:
            return None
        self._model_of[worker] = model
        shard = self._as_it_stands(taken)
        mine.append(shard)
        return shard

    def finish(self, worker: str, shard: Shard) -> None:
        """The shard's part is committed, or its rehearsal survived."""
        self._in_flight[worker].remove(shard)
        if shard.rehearse or len(shard.skip) < shard.num_rows:
            self._queues[shard.model].lives()
        if shard.rehearse:
            record = self._records[shard.index]
            record.one_row_lived = True
            self._search_of(record).survived()
            self._continue(shard, record)

    def fail(self, worker: str, shard: Shard, reason: str) -> None:
        """The worker lives and could not make the shard."""
        self._in_flight[worker].remove(shard)
        record = self._record_of(shard)
        record.attempts += 1
        if record.attempts >= self._max_attempts:
            self._abandon(shard, reason)
        else:
            self._give_back(shard)

    def lose(self, worker: str, reason: str) -> None:
        """The worker died; what it held is suspected. DarkroomError where none lives with the model."""
        shards = self._in_flight.pop(worker, [])
        self._model_of.pop(worker, None)
        if shards:
            # The one that it was most likely at.
            self._queues[shards[0].model].dying.add(shards[0].index)
        for shard in reversed(shards):
            self._charge(shard, reason, alone=len(shards) == 1)

    def _charge(self, shard: Shard, reason: str, *, alone: bool) -> None:
        record = self._record_of(shard)
        record.suspect, record.reason = True, reason
        record.attempts += 1
        if record.search:
            record.search.died()
            self._continue(shard, record)
        elif alone and (record.skip or record.attempts >= self._max_attempts):
            self._begin_search(shard, record)
        else:
            self._give_back(shard)

    def _begin_search(self, shard: Shard, record: _Record) -> None:
        if len(record.skip) >= min(MAX_POISON_ROWS, shard.num_rows):
            self._abandon(
                shard, f"{record.reason}. It was made without {len(record.skip)} rows that do this alone"
            )
            return
        rows = (row for row in range(shard.num_rows) if row not in record.skip)
        record.search = Search(rows, one_has_lived=record.one_row_lived)
        self._continue(shard, record)

    def _continue(self, shard: Shard, record: _Record) -> None:
        """The search's next rehearsal, or what is to be done at its end."""
        search, queue = self._search_of(record), self._queues[shard.model]
        record.attempts = 0
        if search.next:
            self._give_back(shard)
            return
        record.search = None
        if not search.num_survived and len(queue.dying) >= MAX_DYING_SHARDS:
            raise DarkroomError(
                f"every shard of the model {shard.model!r} takes its worker down, {len(queue.dying)} of them "
                f"in a row, and so do rows that are tried alone. The last is {shard.name}: {record.reason}"
            )
        if search.found and (record.one_row_lived or (queue.works and not search.suspects)):
            record.skip = tuple(sorted({*record.skip, *search.found}))
            self._give_back(shard)
        elif search.found:
            self._abandon(shard, f"{record.reason}. Each of its rows that was tried alone does this too")
        elif record.searched_in_vain:
            self._abandon(shard, f"{record.reason}. None of its rows does this alone")
        else:
            record.searched_in_vain = True
            self._give_back(shard)

    def _abandon(self, shard: Shard, reason: str) -> None:
        self.abandoned.append(Abandoned(shard=shard, reason=reason))

    def _record_of(self, shard: Shard) -> _Record:
        return self._records.setdefault(shard.index, _Record())

    @staticmethod
    def _search_of(record: _Record) -> Search:
        assert record.search is not None, "a rehearsal belongs to a search"
        return record.search

    def _is_suspect(self, shard: Shard) -> bool:
        return shard.index in self._records and self._records[shard.index].suspect

    def _give_back(self, shard: Shard) -> None:
        self._queues[shard.model].give_back(shard, suspect=self._is_suspect(shard))

    def _as_it_stands(self, shard: Shard) -> Shard:
        """With what is to be done about it."""
        record = self._records.get(shard.index)
        if record is None:
            return shard
        search = record.search
        if search is None:
            return replace(shard, skip=record.skip, rehearse=None)
        return replace(shard, skip=(*record.skip, *search.found), rehearse=search.next)

    def _room(self, mine: list[Shard]) -> int:
        """In the last wave one at a time, so that no worker waits while another has two."""
        others = len(self._in_flight) - 1
        return SHARDS_IN_FLIGHT if not mine or self.num_waiting > others else 1

    def _choose(self, worker: str, loaded: Sequence[str]) -> str:
        waiting = {model: queue.num_left for model, queue in self._queues.items() if queue.num_left}
        held = [*loaded, *([self._model_of[worker]] if worker in self._model_of else [])]
        for model in reversed(held):
            if model in waiting:
                return model
        workers = Counter(self._model_of.values())
        return max(waiting, key=lambda model: (waiting[model] / (1 + workers[model]), model))
