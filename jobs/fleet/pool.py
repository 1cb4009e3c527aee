"""Workers as Ray actors: started, called and replaced. The only module that knows how to reach them."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import (
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from actors.worker_process import ENGINE
from jobs.dispatch.dispatcher import SHARDS_IN_FLIGHT, Dispatcher
from jobs.dispatch.health import MAX_FAILURES, Health
from jobs.dispatch.shard_record import Death
from jobs.fleet.layout import Layout, machines_for, num_workers, resources_in_use, with_new_gpus
from jobs.fleet.machines import Machines, find_machines
from jobs.fleet.ray_worker import RayWorker
from jobs.output.tally import WorkersNow
from schemas.errors import DEVICE_DEPENDENT, DarkroomError, DeviceError, ReclaimedError
from schemas.job import Job, Shard, ShardReport, ShardSnapshot
from schemas.wording.amounts import counted

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""The longest time for which the driver does not react to a signal."""
GATHER_S = 0.02
"""How long the driver gathers answers after the first one, so that what it does once for all seats stays
cheap with a thousand of them."""
BORN_WITHIN_S = 60.0
"""How long Ray takes to start a process, at most, if there is room for one."""
SLOW_BIRTH_S = 5.0
"""How long Ray needs at most to start a process on a machine that is not loaded."""
PROGRESS_EVERY_S = 2.0
"""How often each worker is asked for its progress."""
MAX_FAILED_STARTS = 5
"""Failed starts in a row of every worker that end the job: no shard can be the cause."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 60.0
"""How long a worker waits after its first failed start, and at most; it doubles with each further one."""
IDLE_S = 60.0
"""How long a worker for which there is no shard stays; a shard may still come back from another."""
NODE_ID = "ray.io/node-id"
"""The label that Ray 2.60 gives each machine."""

_EXPECTED = "node was terminated expectedly"
"""What Ray 2.60 says after a SIGTERM to the machine's raylet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(WorkersNow):
    """What the pool reports while it works, at least every POLL_S seconds."""

    reports: Sequence[ShardReport]
    """The reports of the shards that have finished since the last tick."""
    unfinished: Sequence[ShardSnapshot]
    """Snapshots of the shards that are not done."""


@dataclass(slots=True)
class _Seat:
    """A worker's seat in the pool; the successor of a dead worker takes it over."""

    name: str
    actor: Any = None
    """The Ray actor; None while none is started."""
    node: str = ""
    """Ray's id of the machine on which the actor was born."""
    starts_at: float = 0.0
    """When its actor was started; if there is none, the time before which none is started."""
    loaded: tuple[str, ...] = ()
    """Models in its memory, the latest last."""
    up: bool = False
    """Whether its engine is ready."""
    unfinished: Mapping[int, ShardSnapshot] = field(default_factory=dict)
    """Snapshots of its shards by index, as it last reported them."""
    born: bool = False
    """Whether its process exists (Ray may have no room for one); until it is up it builds its engine."""
    leaving: bool = False
    """Whether its process was told to end from outside: it gets no more shards."""
    failed_starts: int = 0
    """Failed starts in a row."""
    start_error: DarkroomError | None = None
    """What the last failed start said, if it names a fault of the job or its storage."""
    waits_for: str = ""
    """What it last reported to wait for."""
    phase: str = ""
    """What it last reported to do."""
    num_steps: int = 0
    """The denoising steps that it last reported."""
    heartbeats: int = -1
    """The heartbeats that it last reported."""
    stalled_s: float = 0.0
    """How long it has had a shard, or has been building its engine, without a new heartbeat."""
    idle_s: float = 0.0
    """How long it has had no shard."""
    calls: dict[Any, Shard | str] = field(default_factory=dict)
    """Calls without an answer yet, by Ray's reference: a shard, or the name of another method."""

    @property
    def at_work(self) -> bool:
        """Whether it has a shard."""
        return any(isinstance(call, Shard) for call in self.calls.values())

    @property
    def indices_to_commit(self) -> set[int]:
        """Indices of its shards that are not rehearsals."""
        shards = [call for call in self.calls.values() if isinstance(call, Shard)]
        return {shard.index for shard in shards if shard.rehearse is None}

    @property
    def may_hang(self) -> bool:
        """Whether it has a shard or is building its engine, so that heartbeats are expected."""
        return self.at_work or (self.born and not self.up)


class WorkerPool:
    """The workers of one job: started when the `with` block begins and killed when it ends."""

    def __init__(self, job: Job, layout: Layout, *, engine: str = ENGINE) -> None:
        self._job_ref = ray.put(job)
        self._workers = job.spec.workers
        self._stall_timeout_s = job.spec.errors.stall_timeout_s
        self._layout = layout
        self._engine = engine
        self._seats: list[_Seat] = []
        self._numbers = count()
        """Of the seats, for their names."""
        self._seat_of: dict[Any, _Seat] = {}
        """The seat of each call without an answer, by Ray's reference."""
        self._worker_health, self._node_health = Health(), Health()
        self._hosts: dict[str, str] = {}
        """The names of the machines that had a worker, by Ray's ids."""
        self._left_out: set[str] = set()
        """Ray's ids of machines on which no worker is started any more."""
        self._cannot_start_on: set[str] = set()
        """Ray's ids of machines on which the latest start failed."""
        self._short_of = ""
        self._num_steps = 0
        """The denoising steps of all workers so far."""
        self._polled = 0.0
        self._since_polled = 0.0

    def __enter__(self) -> "WorkerPool":
        self._add_seats(self._layout.num)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Workers may be killed at any moment: one request commits a part whole or not at all.
        for seat in self._seats:
            with contextlib.suppress(Exception):
                ray.kill(seat.actor, no_restart=True)

    @property
    def num_up(self) -> int:
        """Workers whose engine is ready."""
        return sum(seat.up for seat in self._seats)

    def run(self, dispatcher: Dispatcher) -> Iterator[Tick]:
        """Generate all of the dispatcher's shards, with a tick at least every POLL_S seconds."""
        self._count_machines(dispatcher)
        while not dispatcher.finished:
            if self._is_poll_due():
                self._leave_out_bad_machines(dispatcher)
                self._count_machines(dispatcher)
                self._follow_cluster(dispatcher)
                self._short_of = resources_in_use(self._layout) if self._finds_no_room() else ""
                self._poll_progress(dispatcher)
            self._replace_leaving(dispatcher)
            self._start_seats()
            self._hand_out(dispatcher)
            answers = [self._take_answer(ref, dispatcher) for ref in self._answered()]
            yield Tick(
                reports=[report for report in answers if report],
                unfinished=self._snapshots(),
                num_workers=self.num_up,
                short_of=self._short_of,
                waits_for=self._waits_for(),
                phases=Counter(seat.phase for seat in self._seats if seat.at_work and seat.phase),
                num_steps=self._num_steps,
            )
        self._leave_out_bad_machines(dispatcher)  # to name what was found out at the end

    def _snapshots(self) -> list[ShardSnapshot]:
        """The snapshots of the shards that are not done, without what one of several workers alone says."""
        snapshots = [snapshot for seat in self._seats for snapshot in seat.unfinished.values()]
        is_alone = sum(seat.up or self._is_starting(seat) for seat in self._seats) == 1
        return snapshots if is_alone else [snapshot.without(DEVICE_DEPENDENT) for snapshot in snapshots]

    def _waits_for(self) -> str:
        """`2 workers wait for get_object s3://bucket/in.png: SlowDown (HTTP 503)`; empty if none waits."""
        waiting = [seat.waits_for for seat in self._seats if seat.waits_for]
        verb = "waits" if len(waiting) == 1 else "wait"
        return f"{counted(len(waiting), 'worker')} {verb} for {waiting[0]}" if waiting else ""

    def _answered(self) -> list[Any]:
        """The calls that have an answer, as Ray's references; none if none is answered for POLL_S seconds."""
        if not self._seat_of:
            time.sleep(POLL_S)
            return []
        first, others = ray.wait([*self._seat_of], num_returns=1, timeout=POLL_S)
        if not first or not others:
            return [*first]
        more, _ = ray.wait(others, num_returns=len(others), timeout=GATHER_S)
        return [*first, *more]

    def _start_actor(self) -> Any:
        avoided = sorted({*self._left_out, self._layout.head} - {""})
        elsewhere = {NODE_ID: f"!in({','.join(avoided)})"} if avoided else None
        actor_class = ray.remote(RayWorker).options(
            num_gpus=self._layout.num_gpus,
            num_cpus=self._layout.num_cpus,
            # The pool itself replaces a dead worker, and the dispatcher decides what the new one does.
            max_restarts=0,
            max_task_retries=0,
            # One more than its shards, for `progress`.
            max_concurrency=SHARDS_IN_FLIGHT + 1,
            scheduling_strategy="SPREAD",
            label_selector=elsewhere,
        )
        return actor_class.remote(self._job_ref, num_cpus=self._layout.num_cpus, engine=self._engine)

    def _add_seats(self, num: int) -> None:
        self._seats += [_Seat(name=f"worker-{next(self._numbers)}") for _ in range(num)]

    def _start_seats(self) -> None:
        """Start the actors of the seats that have none, unless a seat has to wait or is out of service."""
        now = time.monotonic()
        for seat in self._seats:
            if seat.actor is None and seat.starts_at <= now and not self._is_out_of_service(seat):
                seat.actor, seat.node, seat.starts_at = self._start_actor(), "", now
                self._note(seat, seat.actor.born.remote(), "born")

    def _is_starting(self, seat: _Seat) -> bool:
        """Whether the seat's worker will soon be ready: not if there is no room for its process."""
        if seat.up or seat.failed_starts >= MAX_FAILED_STARTS or self._is_out_of_service(seat):
            return False
        return seat.actor is None or seat.born or time.monotonic() < seat.starts_at + BORN_WITHIN_S

    def _finds_no_room(self) -> bool:
        """Whether Ray has not started a process for a worker that it was asked for a while ago."""
        began = time.monotonic() - SLOW_BIRTH_S
        return any(seat.actor and not seat.born and seat.starts_at < began for seat in self._seats)

    def _is_out_of_service(self, seat: _Seat) -> bool:
        """Whether the worker fails alone; never the last one."""
        return self._worker_health.is_bad(seat.name) and any(
            other.actor is not None for other in self._seats if other is not seat
        )

    def _note(self, seat: _Seat, ref: Any, call: Shard | str) -> None:
        """Remember whose answer this reference will bring, and to which call."""
        seat.calls[ref] = call
        self._seat_of[ref] = seat

    def _follow_cluster(self, dispatcher: Dispatcher) -> None:
        """Ask for as many workers as find room and have work, and end those that have none."""
        machines = find_machines()
        self._use_new_gpus(machines, dispatcher)
        num_busy = sum(seat.at_work for seat in self._seats)
        num = num_workers(self._workers, self._layout, machines, num_busy + dispatcher.num_waiting)
        if (added := num - len(self._seats)) > 0:
            logger.warning("workers_added=%d: the cluster has room now", added)
            self._add_seats(added)
        else:
            self._give_up_seats(-added, dispatcher)

    def _use_new_gpus(self, machines: Machines, dispatcher: Dispatcher) -> None:
        """Replace all workers if a cluster without GPUs has got some, and the spec leaves the choice open."""
        layout = with_new_gpus(self._workers, self._layout, machines)
        if layout is not self._layout:
            self._layout = layout
            for seat in self._seats:
                if seat.actor is not None:
                    self._replace(seat, dispatcher, "the cluster has GPUs now", blameless=True)

    def _give_up_seats(self, max_num: int, dispatcher: Dispatcher) -> None:
        """End up to `max_num` workers for which there is no shard, so that their machines can end too."""
        ended: list[_Seat] = []
        # Those first for which the cluster would start a machine.
        for seat in sorted(self._seats, key=lambda seat: seat.born):
            if len(ended) < max_num and seat.actor is not None and self._is_needless(seat):
                dispatcher.leave(seat.name)
                self._empty(seat)
                ended.append(seat)
                self._seats.remove(seat)
        if ended:
            logger.warning("workers_ended=%d: no part is left for them", len(ended))

    def _is_needless(self, seat: _Seat) -> bool:
        """Whether a worker without a shard can go, because others stay of which one can check the other."""
        if not seat.born:
            return True
        if seat.idle_s <= IDLE_S:
            return False
        others = [other.node for other in self._seats if other.up and other is not seat]
        on_two_machines = len({*others}) > 1
        on_its_machine = len(others) > 1 and {*others} == {seat.node}
        return on_two_machines or on_its_machine

    def _hand_out(self, dispatcher: Dispatcher) -> None:
        dispatcher.num_starting = sum(self._is_starting(seat) for seat in self._seats)
        for seat in self._seats:
            while seat.up and not seat.leaving and (shard := dispatcher.next_for(seat.name, seat.loaded)):
                _log_instructions(shard)
                self._note(seat, seat.actor.run.remote(shard), shard)

    def _is_poll_due(self) -> bool:
        """Whether PROGRESS_EVERY_S seconds have passed since this was last true."""
        since = time.monotonic() - self._polled
        if since < PROGRESS_EVERY_S:
            return False
        self._polled += since
        # If the driver itself was paused, nothing is known about the workers for that time.
        self._since_polled = min(since, 2 * PROGRESS_EVERY_S)
        return True

    def _replace_leaving(self, dispatcher: Dispatcher) -> None:
        """Replace the workers that were told to end and have no shard left."""
        for seat in self._seats:
            if seat.leaving and not seat.at_work:
                self._replace(seat, dispatcher, "its process was told to end (SIGTERM)")

    def _poll_progress(self, dispatcher: Dispatcher) -> None:
        for seat in self._seats:
            seat.stalled_s = seat.stalled_s + self._since_polled if seat.may_hang else 0.0
            seat.idle_s = 0.0 if seat.at_work else seat.idle_s + self._since_polled
            # A stopped process does not answer at all; that also counts as no progress.
            if seat.stalled_s > self._stall_timeout_s:
                self._replace(seat, dispatcher, f"it made no progress for {self._stall_timeout_s:g} s")
            elif seat.up and "progress" not in seat.calls.values():
                self._note(seat, seat.actor.progress.remote(), "progress")

    def _take_answer(self, ref: Any, dispatcher: Dispatcher) -> ShardReport | None:
        """Handle one answer of a worker; the shard's report if it answers a shard that is not a rehearsal."""
        seat = self._seat_of.pop(ref, None)
        if seat is None:
            return None  # its worker was replaced because of another answer of the same moment
        call = seat.calls.pop(ref)
        try:
            answer = ray.get(ref)
        except (RayActorError, OutOfMemoryError) as error:
            self._replace(seat, dispatcher, _reason(error), blameless=_is_blameless(error))
            return None
        except RayTaskError as error:
            self._handle_failure(seat, call, dispatcher, error)
            return None
        except RayError as error:
            raise DarkroomError(f"Ray cannot run the workers: {error}") from error
        if isinstance(call, Shard):
            seat.loaded = answer.models_loaded
            seat.unfinished = {i: snapshot for i, snapshot in seat.unfinished.items() if i != call.index}
            seat.stalled_s = 0.0
            return self._finish(seat, call, answer, dispatcher)
        if call == "born":
            seat.born, (seat.node, host) = True, answer
            self._hosts[seat.node] = host
            self._note(seat, seat.actor.ready.remote(), "ready")
        elif call == "ready":
            seat.up, seat.stalled_s, seat.failed_starts, seat.start_error = True, 0.0, 0, None
            self._cannot_start_on.discard(seat.node)
            dispatcher.join(seat.name, seat.node)
        else:
            # A shard may have finished between this call and its answer.
            to_commit = seat.indices_to_commit
            seat.unfinished = {i: snapshot for i, snapshot in answer.unfinished.items() if i in to_commit}
            # An older answer may arrive after the worker has given a shard back.
            seat.leaving |= answer.leaving
            seat.waits_for, seat.phase = answer.waits_for, answer.phase
            self._num_steps += max(0, answer.num_steps - seat.num_steps)
            seat.num_steps = answer.num_steps
            if answer.heartbeats != seat.heartbeats:
                seat.heartbeats, seat.stalled_s = answer.heartbeats, 0.0
        return None

    def _handle_failure(
        self, seat: _Seat, call: Shard | str, dispatcher: Dispatcher, error: RayTaskError
    ) -> None:
        """Act on an exception that a worker's method raised: the worker itself is alive."""
        cause = error.cause
        if isinstance(cause, ReclaimedError):
            seat.leaving = True
            if isinstance(call, Shard):
                dispatcher.take_back(seat.name, call)
            return
        if isinstance(cause, DeviceError):
            self._replace(seat, dispatcher, f"it can no longer use its device: {cause}")
            return
        if call == "ready":
            start_error = cause if isinstance(cause, DarkroomError) else None
            self._replace(seat, dispatcher, _error_text(cause), start_error=start_error)
            return
        if not isinstance(call, Shard):
            raise error
        if isinstance(cause, DarkroomError):
            logger.error("shard=%s failed on %s: %s", call.name, self._host(seat), _error_text(cause))
            dispatcher.refuse(seat.name, call, cause)
        else:
            logger.error("shard=%s failed: %s", call.name, error)
            dispatcher.fail(seat.name, call, _error_text(cause))
        self._blame(seat, seat.node, call.index, dispatcher)

    def _finish(
        self, seat: _Seat, shard: Shard, report: ShardReport, dispatcher: Dispatcher
    ) -> ShardReport | None:
        """Record a shard's report; returned if it is the last one of a shard that was to be committed."""
        finish = dispatcher.finish(seat.name, shard, report.num_device_dependent)
        if not finish.final:
            if shard.rehearse is None:
                rows = counted(report.num_device_dependent, "row")
                logger.warning(
                    "shard=%s has %s that another worker tries: %s on %s could not generate them",
                    *(shard.name, rows, seat.name, self._host(seat)),
                )
            return None
        self._worker_health.succeeded(seat.name)
        self._node_health.succeeded(seat.node)
        if alone := finish.failed_alone:
            for blamed in [other for other in self._seats if other.name == alone.worker]:
                self._blame(blamed, alone.node, shard.index, dispatcher)
        return None if shard.rehearse else report

    def _replace(
        self,
        seat: _Seat,
        dispatcher: Dispatcher,
        reason: str,
        *,
        blameless: bool = False,
        start_error: DarkroomError | None = None,
    ) -> None:
        """End a worker that is dead, stuck or leaving: its shards go back, and a new process will start.

        `blameless` means that it was taken away, so that its shards are not to blame. A leaving worker is
        always blameless. `start_error` is what a failed start said.
        """
        blameless |= seat.leaving
        logger.warning(
            "worker=%s %s: %s (machine=%s)",
            *(seat.name, "was taken away" if blameless else "died", reason, self._host(seat)),
        )
        death = Death(expected=blameless)
        if blameless:
            dispatcher.leave(seat.name)
        elif seat.up:
            death = dispatcher.lose(seat.name, f"its worker died: {reason}")
        else:
            seat.start_error = start_error
            self._back_off(seat, reason)
        self._empty(seat)
        if not death.expected:
            self._blame(seat, seat.node, death.shard, dispatcher)

    def _host(self, seat: _Seat) -> str:
        """The name of the seat's machine."""
        return self._hosts.get(seat.node, "none yet")

    def _back_off(self, seat: _Seat, reason: str) -> None:
        """Let a worker that has failed to start wait; DarkroomError if no worker can start."""
        seat.failed_starts += 1
        backoff_s = FIRST_BACKOFF_S * 2 ** min(seat.failed_starts - 1, 10)
        seat.starts_at = time.monotonic() + min(backoff_s, MAX_BACKOFF_S)
        self._cannot_start_on.add(seat.node)
        if self._no_worker_can_start():
            raise seat.start_error or DarkroomError(
                f"no worker can start: {seat.name} died {seat.failed_starts} times in a row: {reason}"
            )

    def _no_worker_can_start(self) -> bool:
        """Whether every worker has failed to start often enough, or says that the job is at fault.

        While there is a machine on which none has been tried, it takes three times as many failures.
        """
        machines = machines_for(self._layout)
        if len(machines) > 1 and machines - self._cannot_start_on:
            return all(seat.failed_starts >= 3 * MAX_FAILED_STARTS for seat in self._seats)
        return all(seat.start_error or seat.failed_starts >= MAX_FAILED_STARTS for seat in self._seats)

    def _empty(self, seat: _Seat) -> None:
        """Kill the seat's actor, and forget what it was doing."""
        # Other calls to a dead process would fail the same way, and are dealt with already.
        for ref in seat.calls:
            del self._seat_of[ref]
        seat.calls.clear()
        seat.born = seat.up = seat.leaving = False
        seat.loaded, seat.unfinished, seat.waits_for, seat.phase, seat.num_steps = (), {}, "", "", 0
        seat.heartbeats, seat.stalled_s, seat.idle_s = -1, 0.0, 0.0
        with contextlib.suppress(Exception):
            ray.kill(seat.actor, no_restart=True)
        seat.actor = None

    def _blame(self, seat: _Seat, node: str, shard: int | None, dispatcher: Dispatcher) -> None:
        """Record a failure on this machine, with a shard or of a start; end a worker that fails alone."""
        was_out_of_service = self._is_out_of_service(seat)
        self._worker_health.failed(seat.name, shard)
        if self._is_out_of_service(seat) and not was_out_of_service:
            logger.error(
                "worker=%s is out of service: %d shards or starts in a row failed on %s, and nowhere else",
                *(seat.name, MAX_FAILURES, self._host(seat)),
            )
            if seat.actor is not None:
                self._replace(seat, dispatcher, "it is out of service", blameless=True)
        if node:
            self._node_health.failed(node, shard)

    def _leave_out_bad_machines(self, dispatcher: Dispatcher) -> None:
        """Start no more workers on machines that fail alone, and replace those that are there."""
        for node in self._hosts.keys() - self._left_out:
            others = {seat.node for seat in self._seats if seat.up} - self._left_out - {node}
            if others and self._node_health.is_bad(node):
                self._leave_out(node, dispatcher)

    def _count_machines(self, dispatcher: Dispatcher) -> None:
        dispatcher.num_nodes = len(machines_for(self._layout) - self._left_out)

    def _leave_out(self, node: str, dispatcher: Dispatcher) -> None:
        self._left_out.add(node)
        logger.error(
            "machine=%s is left out: %d shards or starts in a row failed there, and nowhere else "
            "(its id in Ray is %s)",
            *(self._hosts[node], MAX_FAILURES, node),
        )
        for seat in self._seats:
            if seat.node == node:
                self._worker_health.forgive(seat.name)
                if seat.actor is not None:
                    self._replace(seat, dispatcher, "its machine is left out", blameless=True)


def _log_instructions(shard: Shard) -> None:
    """Log what a worker does with a shard that has killed a worker before."""
    if shard.rehearse:
        first, end = shard.rehearse
        logger.warning("shard=%s rehearses rows %d to %d", shard.name, first, end - 1)
    elif shard.skip:
        skipped = counted(len(shard.skip), "row")
        logger.warning("shard=%s is generated without %s: %s", shard.name, skipped, [*shard.skip])


def _is_blameless(error: RayError) -> bool:
    """Whether the worker's machine was told to end. A shard may have brought down a machine that is lost."""
    # Ray 2.60 marks a preempted machine with a flag, but an expected end only in the message.
    return getattr(error, "preempted", False) or _EXPECTED in str(error)


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _reason(error: RayError) -> str:
    """The last line of Ray's message, without its advice."""
    if isinstance(error, OutOfMemoryError):
        return "its machine is out of memory, so Ray ended it"
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[-1].strip().partition(" Some common causes include")[0]
