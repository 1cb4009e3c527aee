"""Workers as Ray actors: started, called and replaced. The only module that knows how to reach them."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import (
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from actors.worker_process import ENGINE, WorkerProcess
from jobs.dispatch.cluster import Layout, num_fitting
from jobs.dispatch.dispatcher import SHARDS_IN_FLIGHT, Dispatcher
from schemas.errors import DarkroomError, DeviceError, ReclaimedError
from schemas.job import Job, Shard, ShardReport, ShardSnapshot
from schemas.wording.amounts import counted

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""The longest time for which the driver does not react to a signal."""
PROGRESS_EVERY_S = 2.0
"""How often each worker is asked for its progress."""
MAX_FAILED_STARTS = 5
"""Failed starts of one worker in a row, with no other one up, that end the job: no shard can be the cause."""

_EXPECTED = "node was terminated expectedly"
"""What Ray 2.60 says after a SIGTERM to the machine's raylet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What the pool reports while it works, at least every POLL_S seconds."""

    report: ShardReport | None
    """The report of a shard that is done; None if none has finished since the last tick."""
    unfinished: Sequence[ShardSnapshot]
    """Snapshots of the shards that are not done."""
    num_workers: int
    """Workers that are up."""


@dataclass(slots=True)
class _Seat:
    """A worker's seat in the pool; the successor of a dead worker takes it over."""

    name: str
    actor: Any
    """The Ray actor."""
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
    heartbeats: int = -1
    """The heartbeats that it last reported."""
    stalled_s: float = 0.0
    """How long it has had a shard, or has been building its engine, without a new heartbeat."""
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
        while not dispatcher.finished:
            self._hand_out(dispatcher)
            if self._is_poll_due():
                self._grow(dispatcher)
                self._poll_progress(dispatcher)
            self._replace_leaving(dispatcher)
            waiting = [ref for seat in self._seats for ref in seat.calls]
            answered, _ = ray.wait(waiting, num_returns=1, timeout=POLL_S)
            report = self._take_answer(answered[0], dispatcher) if answered else None
            yield Tick(
                report=report,
                unfinished=[snapshot for seat in self._seats for snapshot in seat.unfinished.values()],
                num_workers=self.num_up,
            )

    def _start_actor(self) -> Any:
        actor_class = ray.remote(WorkerProcess).options(
            num_gpus=self._layout.num_gpus,
            num_cpus=self._layout.num_cpus,
            # The pool itself replaces a dead worker, and the dispatcher decides what the new one does.
            max_restarts=0,
            max_task_retries=0,
            # One more than its shards, for `progress`.
            max_concurrency=SHARDS_IN_FLIGHT + 1,
            scheduling_strategy="SPREAD",
        )
        return actor_class.remote(self._job_ref, num_cpus=self._layout.num_cpus, engine=self._engine)

    def _add_seats(self, num: int) -> None:
        for _ in range(num):
            seat = _Seat(name=f"worker-{len(self._seats)}", actor=self._start_actor())
            self._seats.append(seat)
            self._ask_ready(seat)

    def _ask_ready(self, seat: _Seat) -> None:
        seat.calls[seat.actor.born.remote()] = "born"
        seat.calls[seat.actor.ready.remote()] = "ready"

    def _grow(self, dispatcher: Dispatcher) -> None:
        """Add workers on machines that have joined the cluster, if the spec's `workers.num` is auto."""
        if self._workers.num != "auto":
            return
        num_busy = sum(seat.at_work for seat in self._seats)
        added = min(num_fitting(self._layout), num_busy + dispatcher.num_waiting) - len(self._seats)
        if added > 0:
            logger.warning("workers_added=%d: the cluster has room now", added)
            self._add_seats(added)

    def _hand_out(self, dispatcher: Dispatcher) -> None:
        for seat in self._seats:
            while seat.up and not seat.leaving and (shard := dispatcher.next_for(seat.name, seat.loaded)):
                _log_instructions(shard)
                seat.calls[seat.actor.run.remote(shard)] = shard

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
            # A stopped process does not answer at all; that also counts as no progress.
            if seat.stalled_s > self._stall_timeout_s:
                self._replace(seat, dispatcher, f"it made no progress for {self._stall_timeout_s:g} s")
            elif seat.up and "progress" not in seat.calls.values():
                seat.calls[seat.actor.progress.remote()] = "progress"

    def _take_answer(self, ref: Any, dispatcher: Dispatcher) -> ShardReport | None:
        """Handle one answer of a worker; the shard's report if it answers a shard that is not a rehearsal."""
        seat = next(seat for seat in self._seats if ref in seat.calls)
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
            dispatcher.finish(seat.name, call)
            return None if call.rehearse else answer
        if call == "born":
            seat.born = True
        elif call == "ready":
            seat.up, seat.stalled_s, seat.failed_starts = True, 0.0, 0
            dispatcher.join(seat.name)
        else:
            # A shard may have finished between this call and its answer.
            to_commit = seat.indices_to_commit
            seat.unfinished = {i: snapshot for i, snapshot in answer.unfinished.items() if i in to_commit}
            # An older answer may arrive after the worker has given a shard back.
            seat.leaving |= answer.leaving
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
        if isinstance(cause, DarkroomError):
            raise cause from error  # the job or the storage is at fault, not the shard
        if call == "ready":
            self._replace(seat, dispatcher, _error_text(cause))
            return
        if not isinstance(call, Shard):
            raise error
        logger.error("shard=%s failed: %s", call.name, error)
        dispatcher.fail(seat.name, call, _error_text(cause))

    def _replace(self, seat: _Seat, dispatcher: Dispatcher, reason: str, *, blameless: bool = False) -> None:
        """Replace a worker that is dead, stuck or leaving: its shards go back, and a new process starts.

        `blameless` means that it was taken away, so that its shards are not to blame. A leaving worker is
        always blameless.
        """
        blameless |= seat.leaving
        logger.warning("worker=%s %s: %s", seat.name, "was taken away" if blameless else "died", reason)
        if blameless:
            dispatcher.leave(seat.name)
        elif seat.up:
            dispatcher.lose(seat.name, f"its worker died: {reason}")
        else:
            seat.failed_starts += 1
        # Other calls to the dead process would fail the same way, and are dealt with already.
        seat.calls.clear()
        seat.born = seat.up = seat.leaving = False
        seat.loaded, seat.unfinished = (), {}
        seat.heartbeats, seat.stalled_s = -1, 0.0
        if seat.failed_starts >= MAX_FAILED_STARTS and not self.num_up:
            raise DarkroomError(
                f"no worker can start: {seat.name} died {seat.failed_starts} times in a row: {reason}"
            )
        with contextlib.suppress(Exception):
            ray.kill(seat.actor, no_restart=True)
        seat.actor = self._start_actor()
        self._ask_ready(seat)


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
