"""Workers as Ray actors: started, asked, replaced. The only module that knows how they are reached."""

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
from schemas.errors import DarkroomError, ReclaimedError
from schemas.job import Job, Shard, ShardReport, ShardSnapshot

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""How long the driver is deaf to a signal, at most."""
PROGRESS_EVERY_S = 2.0
MAX_FAILED_STARTS = 5
"""In a row, of one worker while no other is up: more mean that none can live, whatever the shard."""


_EXPECTED = "node was terminated expectedly"
"""After a SIGTERM to the machine's raylet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What the pool tells while it works: a shard that is done, or that time has passed."""

    report: ShardReport | None
    unfinished: Sequence[ShardSnapshot]
    """What has come so far of shards that are not done."""
    num_workers: int
    """Workers that are up."""


@dataclass(slots=True)
class _Seat:
    """A worker's place in the pool; a dead one's successor takes it over."""

    name: str
    actor: Any
    loaded: tuple[str, ...] = ()
    up: bool = False
    unfinished: Mapping[int, ShardSnapshot] = field(default_factory=dict)
    """By the shard's index, as it last told."""
    born: bool = False
    """Whether there is a process (Ray may have no room for one); until it is up it makes its engine."""
    leaving: bool = False
    """Whether its process was asked to end by somebody else: it gets no more shards."""
    failed_starts: int = 0
    """Since it was up."""
    heartbeats: int = -1
    """Of its work, when it last told."""
    stalled_s: float = 0.0
    """How long it has had work, or has been making its engine, without a change of them."""
    calls: dict[Any, Shard | str] = field(default_factory=dict)
    """What was asked of it and not answered: a shard, or the name of a probe."""

    @property
    def at_work(self) -> bool:
        """Whether it has a shard."""
        return any(isinstance(asked, Shard) for asked in self.calls.values())

    @property
    def made(self) -> set[int]:
        """Indices of the shards whose rows it makes for good."""
        shards = [asked for asked in self.calls.values() if isinstance(asked, Shard)]
        return {shard.index for shard in shards if shard.rehearse is None}

    @property
    def is_to_move(self) -> bool:
        """Whether it has something to do that may hang."""
        return self.at_work or (self.born and not self.up)


class WorkerPool:
    """Workers for one job, from `with` to its end."""

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
        # At once, whatever they do: a part is committed whole by one request or not at all.
        for seat in self._seats:
            with contextlib.suppress(Exception):
                ray.kill(seat.actor, no_restart=True)

    @property
    def num_up(self) -> int:
        """Workers that have answered."""
        return sum(seat.up for seat in self._seats)

    def run(self, dispatcher: Dispatcher) -> Iterator[Tick]:
        """Make all of the dispatcher's shards. Yields at least every POLL_S seconds."""
        while not dispatcher.finished:
            self._hand_out(dispatcher)
            if self._is_time_to_look():
                self._grow(dispatcher)
                self._poll_progress(dispatcher)
            self._let_go(dispatcher)
            waiting = [ref for seat in self._seats for ref in seat.calls]
            answered, _ = ray.wait(waiting, num_returns=1, timeout=POLL_S)
            report = self._take(answered[0], dispatcher) if answered else None
            yield Tick(
                report=report,
                unfinished=[made for seat in self._seats for made in seat.unfinished.values()],
                num_workers=self.num_up,
            )

    def _start(self) -> Any:
        remote = ray.remote(WorkerProcess).options(
            num_gpus=self._layout.num_gpus,
            num_cpus=self._layout.num_cpus,
            # The pool starts a dead worker's successor, and the dispatcher says what it does.
            max_restarts=0,
            max_task_retries=0,
            # One more than shards, for `progress`.
            max_concurrency=SHARDS_IN_FLIGHT + 1,
            scheduling_strategy="SPREAD",
        )
        return remote.remote(self._job_ref, num_cpus=self._layout.num_cpus, engine=self._engine)

    def _add_seats(self, num: int) -> None:
        for _ in range(num):
            seat = _Seat(name=f"worker-{len(self._seats)}", actor=self._start())
            self._seats.append(seat)
            self._ask_ready(seat)

    def _ask_ready(self, seat: _Seat) -> None:
        seat.calls[seat.actor.born.remote()] = "born"
        seat.calls[seat.actor.ready.remote()] = "ready"

    def _grow(self, dispatcher: Dispatcher) -> None:
        """Use machines that have joined the cluster, where the spec leaves the number of workers to us."""
        if self._workers.num != "auto":
            return
        num_busy = sum(seat.at_work for seat in self._seats)
        added = min(num_fitting(self._layout), num_busy + dispatcher.num_waiting) - len(self._seats)
        if added > 0:
            logger.warning("workers=%d more: the cluster has room for them now", added)
            self._add_seats(added)

    def _hand_out(self, dispatcher: Dispatcher) -> None:
        for seat in self._seats:
            while seat.up and not seat.leaving and (shard := dispatcher.next_for(seat.name, seat.loaded)):
                _log(shard)
                seat.calls[seat.actor.run.remote(shard)] = shard

    def _is_time_to_look(self) -> bool:
        since = time.monotonic() - self._polled
        if since < PROGRESS_EVERY_S:
            return False
        self._polled += since
        # Of a time in which the driver itself stood still nothing is known.
        self._since_polled = min(since, 2 * PROGRESS_EVERY_S)
        return True

    def _let_go(self, dispatcher: Dispatcher) -> None:
        """Replace workers that were asked to end and have nothing left to do."""
        for seat in self._seats:
            if seat.leaving and not seat.at_work:
                self._replace(seat, dispatcher, "its process was told to end (SIGTERM)")

    def _poll_progress(self, dispatcher: Dispatcher) -> None:
        for seat in self._seats:
            seat.stalled_s = seat.stalled_s + self._since_polled if seat.is_to_move else 0.0
            # A stopped process does not answer at all, and that is no progress either.
            if seat.stalled_s > self._stall_timeout_s:
                self._replace(seat, dispatcher, f"it made no progress for {self._stall_timeout_s:g} s")
            elif seat.up and "progress" not in seat.calls.values():
                seat.calls[seat.actor.progress.remote()] = "progress"

    def _take(self, ref: Any, dispatcher: Dispatcher) -> ShardReport | None:
        """Take one answer in; the report, if it was a shard's."""
        seat = next(seat for seat in self._seats if ref in seat.calls)
        asked = seat.calls.pop(ref)
        try:
            answer = ray.get(ref)
        except (RayActorError, OutOfMemoryError) as error:
            self._replace(seat, dispatcher, _reason(error), blameless=_is_blameless(error))
            return None
        except RayTaskError as error:
            self._failed(seat, asked, dispatcher, error)
            return None
        except RayError as error:
            raise DarkroomError(f"Ray cannot run the workers: {error}") from error
        if isinstance(asked, Shard):
            seat.loaded = answer.models_loaded
            seat.unfinished = {i: made for i, made in seat.unfinished.items() if i != asked.index}
            seat.stalled_s = 0.0
            dispatcher.finish(seat.name, asked)
            return None if asked.rehearse else answer
        if asked == "born":
            seat.born = True
        elif asked == "ready":
            seat.up, seat.stalled_s, seat.failed_starts = True, 0.0, 0
            dispatcher.join(seat.name)
        else:
            # It may have been asked before one of them was done.
            seat.unfinished = {i: made for i, made in answer.unfinished.items() if i in seat.made}
            seat.leaving = answer.leaving
            if answer.heartbeats != seat.heartbeats:
                seat.heartbeats, seat.stalled_s = answer.heartbeats, 0.0
        return None

    def _failed(self, seat: _Seat, asked: Shard | str, dispatcher: Dispatcher, error: RayTaskError) -> None:
        cause = error.cause
        if isinstance(cause, ReclaimedError):
            seat.leaving = True
            if isinstance(asked, Shard):
                dispatcher.take_back(seat.name, asked)
            return
        if isinstance(cause, DarkroomError):
            raise cause from error  # the job's fault or the storage's, not the shard's
        if asked == "ready":
            self._replace(seat, dispatcher, _said(cause))
            return
        if not isinstance(asked, Shard):
            raise error
        logger.error("shard=%s failed: %s", asked.name, error)
        dispatcher.fail(seat.name, asked, _said(cause))

    def _replace(self, seat: _Seat, dispatcher: Dispatcher, reason: str, *, blameless: bool = False) -> None:
        """A worker died or is stuck: its shards go back, and a fresh process takes its place.

        `blameless`: it was taken away, so that its end says nothing about its shards nor about the next one.
        """
        blameless |= seat.leaving
        logger.warning("worker=%s %s: %s", seat.name, "was taken away" if blameless else "died", reason)
        if blameless:
            dispatcher.leave(seat.name)
        elif seat.up:
            dispatcher.lose(seat.name, f"its worker died: {reason}")
        else:
            seat.failed_starts += 1
        # What else was asked of the dead process fails the same way; it is answered for already.
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
        seat.actor = self._start()
        self._ask_ready(seat)


def _log(shard: Shard) -> None:
    """Of a shard that took its worker down."""
    if shard.rehearse:
        first, end = shard.rehearse
        logger.warning("shard=%s rehearses rows %d to %d", shard.name, first, end - 1)
    elif shard.skip:
        logger.warning("shard=%s is made without the rows %s", shard.name, [*shard.skip])


def _is_blameless(error: RayError) -> bool:
    """Whether a worker's machine was told to end; one that is lost may have been taken down by a shard."""
    # For the second Ray 2.60 has words alone.
    return getattr(error, "preempted", False) or _EXPECTED in str(error)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _reason(error: RayError) -> str:
    """The last line of what Ray says, without its advice."""
    if isinstance(error, OutOfMemoryError):
        return "its machine is out of memory, so Ray ended it"
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[-1].strip().partition(" Some common causes include")[0]
