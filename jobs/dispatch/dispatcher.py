"""Which shard goes to whom next: pure state, no Ray, no clock, no I/O.

A shard whose worker dies goes to another worker, as its only shard. When `max_attempts` workers have died
with it, rehearsals search for the row at fault. Then the shard is generated without that row, which is
recorded as failed.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.dispatch.poison import Search
from jobs.output.tally import Abandoned
from schemas.errors import DarkroomError
from schemas.job import Shard
from schemas.wording.amounts import counted

SHARDS_IN_FLIGHT = 2
"""Shards that a worker has at once: while one is on the device, the next is read and the previous written."""

MAX_POISON_ROWS = 16
"""Rows of one shard that may be left out; if more of them kill workers, no single row is at fault."""

MAX_DYING_SHARDS = 5
"""Shards of one model that kill workers in a row, with none generated in between. If then the rows of one of
them cannot be generated alone either, the job ends."""


MAX_DEPARTURES = 20
"""Workers that may be taken away with the same shard; after that it takes longer than such machines stay."""


@dataclass(slots=True)
class _Record:
    """What has gone wrong with one shard."""

    attempts: int = 0
    """Failed attempts to generate it, or to run its present rehearsal."""
    departures: int = 0
    """Workers that were taken away while they had it."""
    suspect: bool = False
    """Whether a worker died with it: it then has a worker to itself, so that the next death is its own."""
    search: Search | None = None
    """The search for the row at fault, while it goes on."""
    skip: tuple[int, ...] = ()
    """Rows that killed a worker alone, by their position in the shard."""
    one_row_lived: bool = False
    """Whether a worker survived a rehearsal."""
    searched_in_vain: bool = False
    """Whether a search has ended without a row."""
    reason: str = ""
    """Why the last worker died."""


class _Queue:
    """One model's waiting shards: first those that were given back, then those that no worker had yet."""

    def __init__(self, shards: Iterator[Shard], num_fresh: int) -> None:
        self._fresh = shards
        self._num_fresh = num_fresh
        self._returned: deque[Shard] = deque()
        self._suspects: deque[Shard] = deque()
        self.dying: set[int] = set()
        """Indices of the shards with which a worker died since the last sign of life."""
        self.works = False
        """Whether there ever was a sign of life: a generated shard or a survived rehearsal."""

    @property
    def num_left(self) -> int:
        """Waiting shards."""
        return self._num_fresh + len(self._returned) + len(self._suspects)

    def take(self, *, beside: bool) -> Shard | None:
        """The next shard; None if it is a suspect and the worker has another shard (`beside`)."""
        if self._suspects and self._is_suspects_turn():
            return None if beside else self._suspects.popleft()
        if self._returned:
            return self._returned.popleft()
        self._num_fresh -= 1
        return next(self._fresh)

    def _is_suspects_turn(self) -> bool:
        """Whether the next shard is a suspect.

        After a death another shard comes first, to show whether any shard of the model can be generated.
        After MAX_DYING_SHARDS deaths in a row the suspects come, to show why.
        """
        others = self._num_fresh + len(self._returned)
        return not others or not self.dying or len(self.dying) >= MAX_DYING_SHARDS

    def give_back(self, shard: Shard, *, suspect: bool) -> None:
        if suspect:
            # The same suspect comes first again: if none can be generated, the first one abandoned shows it.
            self._suspects.appendleft(shard)
        else:
            self._returned.append(shard)

    def lives(self) -> None:
        """Record a sign of life."""
        self.works = True
        self.dying.clear()


class Dispatcher:
    """Hands out shards so that a worker keeps its loaded model, and finds the rows that kill workers."""

    def __init__(
        self,
        shards: Mapping[str, Iterator[Shard]],
        num_shards: Mapping[str, int],
        *,
        max_attempts: int,
        working: Collection[str] = (),
    ) -> None:
        """`shards` and `num_shards` are by model; `working` are the models that already have a part."""
        self._queues = {model: _Queue(shards[model], num_shards[model]) for model in shards}
        for model in self._queues.keys() & set(working):
            self._queues[model].works = True
        self._max_attempts = max_attempts
        self._in_flight: dict[str, list[Shard]] = {}
        self._model_of: dict[str, str] = {}
        self._records: dict[int, _Record] = {}
        """By the shard's index."""
        self.abandoned: list[Abandoned] = []

    @property
    def num_waiting(self) -> int:
        """Shards that no worker has."""
        return sum(queue.num_left for queue in self._queues.values())

    @property
    def num_in_flight(self) -> int:
        """Shards that some worker has."""
        return sum(len(shards) for shards in self._in_flight.values())

    @property
    def finished(self) -> bool:
        """Whether every shard is committed or abandoned."""
        return not self.num_waiting and not self.num_in_flight

    def join(self, worker: str) -> None:
        """Record that a worker is ready for shards."""
        self._in_flight.setdefault(worker, [])

    def leave(self, worker: str) -> None:
        """Record that a worker has ended and its shards are not to blame: other workers get them."""
        for shard in self._in_flight.pop(worker, []):
            self._depart(shard)
        self._model_of.pop(worker, None)

    def take_back(self, worker: str, shard: Shard) -> None:
        """Record that a worker returns this shard because it was told to end."""
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
                f"{record.departures} workers were taken away with it before it was done: it needs machines "
                "that stay longer, or, in an output of its own, a smaller batching.shard_rows",
            )

    def next_for(self, worker: str, loaded: Sequence[str] = ()) -> Shard | None:
        """A shard for this worker now, or None; `loaded` are the models in its memory, the latest last."""
        in_flight = self._in_flight[worker]
        if (
            not self.num_waiting
            or len(in_flight) >= self._max_in_flight(in_flight)
            or any(map(self._is_suspect, in_flight))
        ):
            return None
        model = self._choose_model(worker, loaded)
        if in_flight and in_flight[-1].model != model:
            return None  # two models in flight could push each other out of a small cache, shard by shard
        taken = self._queues[model].take(beside=bool(in_flight))
        if taken is None:
            return None
        self._model_of[worker] = model
        shard = self._with_instructions(taken)
        in_flight.append(shard)
        return shard

    def finish(self, worker: str, shard: Shard) -> None:
        """Record that the shard's part is committed, or that its worker survived the rehearsal."""
        self._in_flight[worker].remove(shard)
        if shard.rehearse or len(shard.skip) < shard.num_rows:
            self._queues[shard.model].lives()
        if shard.rehearse:
            record = self._records[shard.index]
            record.one_row_lived = True
            self._search_of(record).survived()
            self._continue(shard, record)

    def fail(self, worker: str, shard: Shard, reason: str) -> None:
        """Record that the worker could not generate the shard and is still alive."""
        self._in_flight[worker].remove(shard)
        record = self._record_of(shard)
        record.attempts += 1
        if record.attempts >= self._max_attempts:
            self._abandon(shard, reason)
        else:
            self._give_back(shard)

    def lose(self, worker: str, reason: str) -> None:
        """Record that the worker died: its shards become suspects.

        DarkroomError where no shard of the model can be generated.
        """
        shards = self._in_flight.pop(worker, [])
        self._model_of.pop(worker, None)
        if shards:
            # The oldest is the one that was most likely on the device.
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
                shard,
                f"{record.reason}. It was generated without {counted(len(record.skip), 'row')} "
                "that do this alone",
            )
            return
        rows = (row for row in range(shard.num_rows) if row not in record.skip)
        record.search = Search(rows, one_has_lived=record.one_row_lived)
        self._continue(shard, record)

    def _continue(self, shard: Shard, record: _Record) -> None:
        """Begin the search's next rehearsal, or act on its result if it has ended."""
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

    def _with_instructions(self, shard: Shard) -> Shard:
        """The shard with the rows to leave out and the rows to rehearse."""
        record = self._records.get(shard.index)
        if record is None:
            return shard
        search = record.search
        if search is None:
            return replace(shard, skip=record.skip, rehearse=None)
        return replace(shard, skip=(*record.skip, *search.found), rehearse=search.next)

    def _max_in_flight(self, in_flight: list[Shard]) -> int:
        """Shards that a worker may have: near the end only one, so that none waits while another has two."""
        num_others = len(self._in_flight) - 1
        return SHARDS_IN_FLIGHT if not in_flight or self.num_waiting > num_others else 1

    def _choose_model(self, worker: str, loaded: Sequence[str]) -> str:
        """The model of the worker's next shard: a loaded one, else the one with most shards per worker."""
        waiting = {model: queue.num_left for model, queue in self._queues.items() if queue.num_left}
        loaded_models = [*loaded, *([self._model_of[worker]] if worker in self._model_of else [])]
        for model in reversed(loaded_models):
            if model in waiting:
                return model
        workers = Counter(self._model_of.values())
        return max(waiting, key=lambda model: (waiting[model] / (1 + workers[model]), model))
