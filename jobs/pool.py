"""Ray: actors started, asked, replaced. The only module that knows how they are reached."""

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import AuthenticationError, OutOfMemoryError, RayActorError, RayError, RayTaskError

import actors
import jobs
import schemas
from actors.worker_process import ENGINE, WorkerProcess
from jobs.dispatcher import SHARDS_IN_FLIGHT, Dispatcher
from schemas.errors import DarkroomError, SpecError
from schemas.job import InMaking, Job, Shard, ShardReport
from schemas.spec import WorkersSpec

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""How long the driver is deaf to a signal, at most."""
PROGRESS_EVERY_S = 2.0
CONNECT_WITHIN_S = 10.0
MAX_FAILED_STARTS = 5
"""In a row, over all workers: more mean that none can live, whatever the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The workers of a job on this cluster."""

    num: int
    num_gpus: float
    num_cpus: int

    def describe(self) -> str:
        """For the log."""
        each = [f"{self.num_gpus:g} GPU"] if self.num_gpus else []
        workers = "1 worker" if self.num == 1 else f"{self.num} workers"
        return f"{workers} of {' and '.join([*each, f'{self.num_cpus} CPU'])} each"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What the pool tells while it works: a shard that is done, or that time has passed."""

    report: ShardReport | None
    in_making: Sequence[InMaking]
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
    in_making: Mapping[int, InMaking] = field(default_factory=dict)
    """By the shard's index, as it last told."""
    beats: int = -1
    """Of its work, when it last told."""
    stalled_s: float = 0.0
    """How long it has had work without a change of them."""
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


def in_ray_job() -> bool:
    """Whether this process is the entrypoint of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def connected() -> Iterator[None]:
    """Inside the block there is a Ray: the one that RAY_ADDRESS names, or one that starts and ends here."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    _check_answers(address)
    try:
        with _own_sigterm():
            ray.init(**_options(address))
    except (ConnectionError, AuthenticationError) as error:
        raise SpecError(
            f"cannot {f'join the Ray at {address}' if address else 'start Ray'}: {error}. "
            "If it asks for a token, set RAY_AUTH_MODE=token here and give it in ~/.ray/auth_token"
        ) from error
    if address not in ("", "local") and os.environ.get("RAY_AUTH_MODE") != "token":
        # It would not have let us in without a token if it asked for one.
        logger.warning(
            "the Ray at %s has no authentication: whoever reaches its ports can run code there and use its "
            "credentials. Set RAY_AUTH_MODE=token on all its machines and here",
            address,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray 2.60 would try for a quarter of an hour to reach a head that is not there."""
    if address.startswith("http"):
        raise SpecError(
            f"RAY_ADDRESS is {address}, the address for `darkroom submit --address`; "
            "to join a Ray from here, give its head as host:6379, or unset it to start one"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", "local", or none
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_WITHIN_S).close()
    except OSError as error:
        raise SpecError(
            f"RAY_ADDRESS is {address}, and nobody answers there: {error}. "
            "Unset it to start Ray on this machine"
        ) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """ray.init puts a SIGTERM handler of its own in place, which raises SystemExit: undo both."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _options(address: str) -> dict[str, Any]:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not address:
        # Without an address Ray would join whichever `ray start` it finds on this machine.
        options |= {"address": "local", "include_dashboard": False}
    elif not in_ray_job():
        # A job's working directory has brought the code already.
        options["runtime_env"] = {
            "py_modules": [str(Path(package.__path__[0])) for package in (schemas, actors, jobs)]
        }
    return options


def lay_out(spec: WorkersSpec, num_shards: int) -> Layout:
    """How many workers of which size this cluster can hold and this job can use."""
    resources = ray.cluster_resources()
    gpus, cpus = resources.get("GPU", 0), int(resources.get("CPU", 1))
    num_gpus = float(bool(gpus)) if spec.num_gpus == "auto" else spec.num_gpus
    if num_gpus and not gpus and not os.environ.get("RAY_ADDRESS"):
        raise SpecError(
            f"workers.num_gpus is {num_gpus:g} and this machine has no GPU that Ray can see; "
            "use --set workers.num_gpus=0 to run on its CPUs"
        )
    gpu_share = num_gpus / gpus if gpus else 0.0
    num_cpus = spec.num_cpus if spec.num_cpus != "auto" else max(1, min(4, int(cpus * gpu_share)))
    fitting = int(1 / gpu_share) if gpu_share else cpus // num_cpus
    num = spec.num if spec.num != "auto" else max(1, fitting)
    return Layout(num=min(num, num_shards), num_gpus=num_gpus, num_cpus=num_cpus)


class WorkerPool:
    """Workers for one job, from `with` to its end."""

    def __init__(self, job: Job, layout: Layout, *, engine: str = ENGINE) -> None:
        self._job_ref = ray.put(job)
        self._stall_timeout_s = job.spec.errors.stall_timeout_s
        self._layout = layout
        self._engine = engine
        self._seats: list[_Seat] = []
        self._failed_starts = 0
        self._polled = 0.0

    def __enter__(self) -> "WorkerPool":
        self._seats = [_Seat(name=f"worker-{i}", actor=self._start()) for i in range(self._layout.num)]
        for seat in self._seats:
            self._ask_ready(seat)
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
            self._poll_progress(dispatcher)
            waiting = [ref for seat in self._seats for ref in seat.calls]
            answered, _ = ray.wait(waiting, num_returns=1, timeout=POLL_S)
            report = self._take(answered[0], dispatcher) if answered else None
            yield Tick(
                report=report,
                in_making=[made for seat in self._seats for made in seat.in_making.values()],
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

    def _ask_ready(self, seat: _Seat) -> None:
        seat.calls[seat.actor.ready.remote()] = "ready"

    def _hand_out(self, dispatcher: Dispatcher) -> None:
        for seat in self._seats:
            while seat.up and (shard := dispatcher.next_for(seat.name, seat.loaded)):
                _log(shard)
                seat.calls[seat.actor.run.remote(shard)] = shard

    def _poll_progress(self, dispatcher: Dispatcher) -> None:
        since = time.monotonic() - self._polled
        if since < PROGRESS_EVERY_S:
            return
        self._polled += since
        for seat in self._seats:
            # Of a time in which the driver itself stood still nothing is known.
            seat.stalled_s += min(since, 2 * PROGRESS_EVERY_S) if seat.at_work else -seat.stalled_s
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
            preempted = getattr(error, "preempted", False)
            self._replace(seat, dispatcher, _reason(error), preempted=preempted)
            return None
        except RayTaskError as error:
            self._failed(seat, asked, dispatcher, error)
            return None
        except RayError as error:
            raise DarkroomError(f"Ray cannot run the workers: {error}") from error
        if isinstance(asked, Shard):
            seat.loaded = answer.models_loaded
            seat.in_making = {i: made for i, made in seat.in_making.items() if i != asked.index}
            seat.stalled_s = 0.0
            dispatcher.finish(seat.name, asked)
            return None if asked.rehearse else answer
        if asked == "ready":
            seat.up = True
            self._failed_starts = 0
            dispatcher.join(seat.name)
        else:
            # It may have been asked before one of them was done.
            seat.in_making = {i: made for i, made in answer.in_making.items() if i in seat.made}
            if answer.beats != seat.beats:
                seat.beats, seat.stalled_s = answer.beats, 0.0
        return None

    def _failed(self, seat: _Seat, asked: Shard | str, dispatcher: Dispatcher, error: RayTaskError) -> None:
        cause = error.cause
        if isinstance(cause, DarkroomError):
            raise cause from error  # the job's fault or the storage's, not the shard's
        if not isinstance(asked, Shard):
            raise error
        logger.error("shard=%s failed: %s", asked.name, error)
        dispatcher.fail(seat.name, asked, f"{type(cause).__name__}: {cause}")

    def _replace(self, seat: _Seat, dispatcher: Dispatcher, reason: str, *, preempted: bool = False) -> None:
        """A worker died or is stuck: its shards go back, and a fresh process takes its place."""
        logger.warning("worker=%s died: %s", seat.name, reason)
        if preempted:
            dispatcher.leave(seat.name)
        elif seat.up:
            dispatcher.lose(seat.name, f"its worker died: {reason}")
        else:
            self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise DarkroomError(f"no worker can start: {self._failed_starts} in a row died: {reason}")
        # What else was asked of the dead process fails the same way; it is answered for already.
        seat.calls.clear()
        seat.up, seat.loaded, seat.in_making = False, (), {}
        seat.beats, seat.stalled_s = -1, 0.0
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


def _reason(error: RayError) -> str:
    """The last line of what Ray says, without its advice."""
    if isinstance(error, OutOfMemoryError):
        return "its machine is out of memory, so Ray ended it"
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[-1].strip().partition(" Some common causes include")[0]
