"""Which shard goes to whom next: pure state, no Ray, no clock, no I/O.

A shard that fails goes to another machine, or to another worker where there is one machine. A shard whose
worker dies is its next worker's only shard. When `max_attempts` workers have died with it, rehearsals search
for the row at fault. A row that was alone when its worker died is tried once more elsewhere. If it kills
there too, the shard is generated without it, and the row is recorded as failed.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from jobs.dispatch.poison import Search
from jobs.dispatch.shard_queue import MAX_DYING_SHARDS, ShardQueue, Shards
from jobs.dispatch.shard_record import Death, Doubt, Finish, Place, ShardRecord
from jobs.output.tally import Abandoned
from schemas.errors import DarkroomError
from schemas.job import Shard
from schemas.wording.amounts import counted

SHARDS_IN_FLIGHT = 2
"""Shards that a worker has at once: while one is on the device, the next is read and the previous written."""

MAX_POISON_ROWS = 16
"""Rows of one shard that may be left out; if more of them kill workers, no single row is at fault."""

MAX_DEATHS_OF_GOOD_ROWS = 5
"""Deaths in a row with a row that lived before, after which its shard is left out."""

MAX_SEARCHES_IN_VAIN = 3
"""Searches that convict no row, after which a shard is left out: a machine that breaks during a search can
spoil it, but not one after the other."""

MAX_DEPARTURES = 20
"""Workers that may be taken away with the same shard; after that it takes longer than such machines stay."""


@dataclass(slots=True)
class _Worker:
    """A worker that is ready."""

    place: Place
    in_flight: list[Shard] = field(default_factory=list)
    """Its shards, the oldest first."""
    model: str | None = None
    """The model of its latest shard."""
    has_worked: bool = False
    """Whether this process has given a sign of life: a generated shard or a survived rehearsal."""


class Dispatcher:
    """Hands out shards so that a worker keeps its loaded model, and finds the rows that kill workers."""

    def __init__(
        self,
        shards: Mapping[str, Shards],
        *,
        max_attempts: int,
        working: Collection[str] = (),
    ) -> None:
        """`shards` are by model; `working` are the models that already have a part."""
        self._queues = {model: ShardQueue(of_model) for model, of_model in shards.items()}
        for model in self._queues.keys() & set(working):
            self._queues[model].works = True
        self._max_attempts = max_attempts
        self._workers: dict[str, _Worker] = {}
        """Those that are ready, by name."""
        self._processes = count()
        self._records: dict[int, ShardRecord] = {}
        """By the shard's index."""
        self.abandoned: list[Abandoned] = []
        self.num_nodes = 1
        """Machines that can have workers."""
        self.num_starting = 0
        """Workers that will soon be ready, on whatever machine."""

    @property
    def num_waiting(self) -> int:
        """Shards that no worker has."""
        return sum(queue.num_left for queue in self._queues.values())

    @property
    def num_in_flight(self) -> int:
        """Shards that some worker has."""
        return sum(len(worker.in_flight) for worker in self._workers.values())

    @property
    def finished(self) -> bool:
        """Whether every shard is committed or abandoned."""
        return not self.num_waiting and not self.num_in_flight

    def join(self, worker: str, node: str = "") -> None:
        """Record that a worker's new process, on this machine, is ready for shards."""
        self._workers[worker] = _Worker(Place(worker, node, next(self._processes)))

    def leave(self, worker: str) -> None:
        """Record that a worker has ended and its shards are not to blame: other workers get them."""
        gone = self._workers.pop(worker, None)
        for shard in gone.in_flight if gone else ():
            self._depart(shard)

    def take_back(self, worker: str, shard: Shard) -> None:
        """Record that a worker returns this shard because it was told to end."""
        self._workers[worker].in_flight.remove(shard)
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
        taker = self._workers[worker]
        in_flight = taker.in_flight
        if (
            not self.num_waiting
            or len(in_flight) >= self._max_in_flight(in_flight)
            or any(map(self._is_suspect, in_flight))
        ):
            return None
        for model in self._models_for(taker, loaded):
            if in_flight and in_flight[-1].model != model:
                return None  # two models in flight could push each other out of a small cache
            taken = self._queues[model].take(
                worker, lambda shard: self._fits(taker, shard), beside=bool(in_flight)
            )
            if taken:
                taker.model = model
                shard = self._with_instructions(taken, proven=taker.has_worked)
                in_flight.append(shard)
                return shard
        return None

    def finish(self, worker: str, shard: Shard, num_failed: int = 0) -> Finish:
        """Record that the shard's part is committed, or that its worker survived the rehearsal.

        `num_failed`: rows that the worker could not generate, though another one perhaps can.
        """
        maker = self._workers[worker]
        maker.in_flight.remove(shard)
        first, end = shard.rehearse or (len(shard.skip), shard.num_rows)
        if num_failed < end - first:
            self._queues[shard.model].lives()
            maker.has_worked = True
        if not shard.rehearse:
            return self._believed(shard, maker.place, num_failed)
        record = self._records[shard.index]
        if num_failed:
            # What could not be generated has not shown that it does not kill.
            record.failed_at.append(maker.place)
            if not self._is_agreed(record.failed_at):
                self._give_back(shard)
                return Finish(final=False)
        self._survived(shard, record, generated=not num_failed)
        return Finish()

    def _believed(self, shard: Shard, place: Place, num_failed: int) -> Finish:
        """What is thought of a part: what one worker alone could not generate, another one must try."""
        doubt = self._records[shard.index].doubt if shard.index in self._records else None
        if doubt:
            return Finish(failed_alone=doubt.place if num_failed < doubt.num_rows else None)
        if not num_failed or self._is_agreed([place]):
            return Finish()
        record = self._record_of(shard)
        record.doubt, record.failed_at = Doubt(place=place, num_rows=num_failed), [place]
        self._give_back(shard)
        return Finish(final=False)

    def fail(self, worker: str, shard: Shard, reason: str) -> None:
        """Record that the worker could not generate the shard and is still alive."""
        failed = self._workers[worker]
        failed.in_flight.remove(shard)
        record = self._record_of(shard)
        record.attempts += 1
        record.failed_at.append(failed.place)
        record.raised_at.add(failed.place.node)
        # What only one of several machines says may be the machine's fault.
        agreed = len(record.raised_at) > 1 or not self._may_go_elsewhere({failed.place.node})
        if record.attempts >= self._max_attempts and agreed:
            self._abandon(shard, reason)
        else:
            self._give_back(shard)

    def refuse(self, worker: str, shard: Shard, error: DarkroomError) -> None:
        """Record that the worker says that the job or its storage is at fault.

        Raises the error if several workers say this of the shard, or no other one can be asked.
        """
        refusing = self._workers[worker]
        refusing.in_flight.remove(shard)
        record = self._record_of(shard)
        record.failed_at.append(refusing.place)
        record.refused_at.append(refusing.place)
        if self._is_agreed(record.refused_at):
            raise error
        self._give_back(shard)

    def lose(self, worker: str, reason: str) -> Death:
        """Record that the worker died: its shards become suspects. Returns what that tells of the worker.

        DarkroomError where no shard of the model can be generated.
        """
        dead = self._workers.pop(worker)
        shards = dead.in_flight
        if not shards:
            return Death()
        # The oldest is the one that was most likely on the device.
        oldest = shards[0]
        self._queues[oldest.model].dying.add(oldest.index)
        death = self._death_with(oldest)
        for shard in reversed(shards):
            self._charge(shard, reason, dead.place, alone=len(shards) == 1)
        return death

    def _death_with(self, shard: Shard) -> Death:
        if shard.rehearse is None:
            return Death(shard=shard.index)
        return Death(expected=not self._records[shard.index].shows_good_row)

    def _charge(self, shard: Shard, reason: str, place: Place, *, alone: bool) -> None:
        record = self._record_of(shard)
        record.suspect, record.reason = True, reason
        record.attempts += 1
        if record.shows_good_row:
            self._lost_good_row(shard, record, place)
        elif record.accused:
            record.skip = tuple(sorted({*record.skip, record.accused.pop()}))
            self._next_trial(shard, record)
        elif record.search:
            assert shard.rehearse is not None
            record.died_alone[shard.rehearse[0]] = place  # as it is, if this row is found
            record.search.died()
            self._continue(shard, record)
        else:
            record.failed_at.append(place)
            again = record.skip and not self._may_go_elsewhere(record.failed_nodes)
            if alone and (again or record.attempts >= self._max_attempts):
                self._begin_search(shard, record)
            else:
                self._give_back(shard)

    def _lost_good_row(self, shard: Shard, record: ShardRecord, place: Place) -> None:
        """Act on a death with a row that has lived: it says something of the worker alone."""
        record.failed_at.append(place)
        record.deaths_of_good_row += 1
        if record.deaths_of_good_row < MAX_DEATHS_OF_GOOD_ROWS:
            self._give_back(shard)
        else:
            self._abandon(shard, f"{record.reason}. A row that was generated before does this too")

    def _survived(self, shard: Shard, record: ShardRecord, *, generated: bool) -> None:
        """Act on a rehearsal that its worker has survived; `generated`: all of its rows were."""
        assert shard.rehearse is not None
        first, end = shard.rehearse
        if record.shows_good_row:
            record.deaths_of_good_row = 0
            self._give_back(shard)
        elif record.accused:
            # What killed the first worker was not this row.
            record.accused.pop()
            self._next_trial(shard, record)
        else:
            record.one_row_lived = True
            if end - first == 1 and generated:
                record.good_row = first
            record.present_search.survived()
            self._continue(shard, record)

    def _next_trial(self, shard: Shard, record: ShardRecord) -> None:
        """Try the next accused row once more; generate the shard without the convicted ones if there is none.

        The shard is abandoned if there was no conviction for too many times.
        """
        record.attempts = 0
        if record.accused:
            record.failed_at = [record.died_alone[record.accused[-1]]]
            self._give_back(shard)
            return
        record.failed_at = []
        if len(record.skip) > record.num_convicted:
            self._give_back(shard)
        else:
            self._searched_in_vain(shard, record, "None of its rows does this on another worker too")

    def _searched_in_vain(self, shard: Shard, record: ShardRecord, finding: str) -> None:
        """Try the shard again after a search that has convicted no row, unless that has been often enough."""
        record.searches_in_vain += 1
        if record.searches_in_vain < MAX_SEARCHES_IN_VAIN:
            self._give_back(shard)
        else:
            self._abandon(shard, f"{record.reason}. {finding}")

    def _begin_search(self, shard: Shard, record: ShardRecord) -> None:
        if len(record.skip) >= min(MAX_POISON_ROWS, shard.num_rows):
            self._abandon(
                shard,
                f"{record.reason}. It was generated without {counted(len(record.skip), 'row')} "
                "that do this alone",
            )
            return
        rows = (row for row in range(shard.num_rows) if row not in record.skip)
        record.search = Search(rows, one_has_lived=record.one_row_lived)
        record.failed_at.clear()
        self._continue(shard, record)

    def _continue(self, shard: Shard, record: ShardRecord) -> None:
        """Begin the search's next rehearsal, or act on its result if it has ended."""
        search, queue = record.present_search, self._queues[shard.model]
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
            record.accused, record.num_convicted = [*search.found], len(record.skip)
            self._next_trial(shard, record)
        elif search.found:
            self._abandon(shard, f"{record.reason}. Each of its rows that was tried alone does this too")
        else:
            self._searched_in_vain(shard, record, "None of its rows does this alone")

    def _fits(self, taker: _Worker, shard: Shard) -> bool:
        """Whether no other worker should rather have this shard."""
        record = self._records.get(shard.index)
        if record is None:
            return True
        nodes, processes = record.failed_nodes, {place.process for place in record.failed_at}
        if taker.place.node in nodes and self._may_go_elsewhere(nodes):
            return False
        if taker.place.process in processes and self._has_other_process(processes):
            return False
        if record.needs_proven_worker and not taker.has_worked and self._has_other_work(shard.model):
            return False
        return taker in self._best_for(record)

    def _best_for(self, record: ShardRecord) -> list[_Worker]:
        """The workers that are ready and whose success or failure with the shard would say most."""
        nodes = record.failed_nodes
        processes = {place.process for place in record.failed_at}
        preferences: tuple[Callable[[_Worker], bool], ...] = (
            lambda worker: worker.place.node not in nodes,
            lambda worker: worker.place.process not in processes,
            lambda worker: worker.has_worked or not record.needs_proven_worker,
        )
        workers = [*self._workers.values()]
        for preferred in preferences:
            workers = [*filter(preferred, workers)] or workers
        return workers

    def _may_go_elsewhere(self, nodes: Collection[str]) -> bool:
        """Whether there is a worker on a machine that is not one of these, or there may soon be one."""
        ready = any(worker.place.node not in nodes for worker in self._workers.values())
        return ready or (self.num_starting > 0 and self.num_nodes > len(nodes))

    def _has_other_process(self, processes: Collection[int]) -> bool:
        """Whether there is a worker's process that is none of these, or there may soon be one."""
        ready = any(worker.place.process not in processes for worker in self._workers.values())
        return ready or self.num_starting > 0

    def _is_agreed(self, places: Sequence[Place]) -> bool:
        """Whether several machines say so (on one machine: several processes), or no other can be asked."""
        nodes, processes = {place.node for place in places}, {place.process for place in places}
        if len(nodes) > 1:
            return True
        return not self._may_go_elsewhere(nodes) and (
            len(processes) > 1 or not self._has_other_process(processes)
        )

    def _has_other_work(self, model: str) -> bool:
        """Whether an unproven worker can prove itself with another shard; no more if all shards kill."""
        if len(self._queues[model].dying) >= MAX_DYING_SHARDS:
            return False
        return any(queue.num_unsuspected for queue in self._queues.values())

    def _abandon(self, shard: Shard, reason: str) -> None:
        self.abandoned.append(Abandoned(shard=shard, reason=reason))

    def _record_of(self, shard: Shard) -> ShardRecord:
        return self._records.setdefault(shard.index, ShardRecord())

    def _is_suspect(self, shard: Shard) -> bool:
        return shard.index in self._records and self._records[shard.index].suspect

    def _give_back(self, shard: Shard) -> None:
        self._queues[shard.model].give_back(shard, suspect=self._is_suspect(shard))

    def _with_instructions(self, shard: Shard, *, proven: bool) -> Shard:
        record = self._records.get(shard.index)
        return record.instruct(shard, proven=proven) if record else shard

    def _max_in_flight(self, in_flight: list[Shard]) -> int:
        """Shards that a worker may have: near the end only one, so that none waits while another has two."""
        num_others = len(self._workers) - 1
        return SHARDS_IN_FLIGHT if not in_flight or self.num_waiting > num_others else 1

    def _models_for(self, taker: _Worker, loaded: Sequence[str]) -> Iterator[str]:
        """The models that have waiting shards, the best for the worker first.

        These are loaded ones, the latest first, and then those with most shards per worker.
        """
        waiting = {model: queue.num_left for model, queue in self._queues.items() if queue.num_left}
        for model in (taker.model, *reversed(loaded)):
            if model is not None and waiting.pop(model, 0):
                yield model
        workers = Counter(worker.model for worker in self._workers.values())
        yield from sorted(
            waiting, key=lambda model: (waiting[model] / (1 + workers[model]), model), reverse=True
        )
