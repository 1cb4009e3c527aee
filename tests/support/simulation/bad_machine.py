"""Simulated runs of the real pool on machines of which one is bad, from the start or a random moment on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from jobs.dispatch.health import MAX_FAILURES
from jobs.fleet import pool
from jobs.fleet.budget import Budget
from schemas.errors import DeviceError, StorageError
from schemas.job import FailedRows, Shard, ShardReport, ShardSnapshot
from schemas.spec.job_spec import ErrorsSpec
from tests.support.simulation.fake_ray import Actor
from tests.support.simulation.pool_run import FOREVER, ROWS, Run, Worker
from tests.support.simulation.reports import report_of
from tests.support.simulation.simulated_time import Clock, ViolationError

BAD = "machine-0"
SHARDS = 60
CLUSTERS = ((2, 2), (4, 2), (8, 4), (32, 4))
"""Numbers of workers, each with a number of machines."""
Poison = tuple[int, int]
"""A shard and a row of it that kills every worker."""
Rows = dict[str, FailedRows]
"""The rows of a shard that fail, by error code."""


def cannot_start(worker: Worker) -> Rows:
    """Its engine is never ready."""
    raise RuntimeError("no CUDA-capable device is detected")


def does_not_see_the_output(worker: Worker) -> Rows:
    """Its engine is never ready, and it says that the job is at fault."""
    raise StorageError("output.path must be a place that every machine of the cluster shares")


def dies(worker: Worker) -> Rows:
    """Each shard kills it."""
    worker.actor.die()
    return {}


def raises(worker: Worker) -> Rows:
    """Each shard fails."""
    raise RuntimeError("cuBLAS is not initialised")


def loses_its_device(worker: Worker) -> Rows:
    """Each shard meets a dead CUDA context."""
    raise DeviceError("CUDA error: unspecified launch failure")


def reaches_no_storage(worker: Worker) -> Rows:
    """Each shard ends with an error of the storage."""
    raise StorageError("s3://bucket/in.parquet cannot be read: the network is unreachable")


def has_no_memory(worker: Worker) -> Rows:
    """Every row fails, and the part is committed."""
    return {"out_of_memory": FailedRows(num_rows=ROWS, message="the image does not fit in memory")}


def makes_some_noise(worker: Worker) -> Rows:
    """One row of each shard fails, and the part is committed."""
    return {"nonfinite_image": FailedRows(num_rows=1, message="the image has pixels that are no numbers")}


def hangs(worker: Worker) -> Rows:
    """Each shard stays for ever."""
    worker.clock.thread.sleep(FOREVER)
    return {}


Fails = Callable[[Worker], Rows]
AT_THE_START: tuple[Fails, ...] = (cannot_start, does_not_see_the_output)
BEHAVIOURS: tuple[Fails, ...] = (
    *AT_THE_START,
    *(dies, raises, loses_its_device, reaches_no_storage, has_no_memory, makes_some_noise, hangs),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A cluster with a bad machine."""

    fails: Fails
    """What its workers do."""
    workers: int
    machines: int
    poison: Poison | None = None
    seed: int
    num_shards: int = SHARDS

    def run(self) -> Run:
        """Run the job. ViolationError if the bad machine costs a shard or a row, or is not named."""
        random = Random(self.seed)
        begins_s = random.choice((0.0, random.uniform(0, 2 * self.num_shards / self.workers)))
        kind = _workers(self.fails, begins_s, self.poison, random)
        with _log_lines() as lines:
            run = Run(
                then=kind, num=self.workers, machines=self.machines, shards={"sd": self.num_shards}
            ).run()
        self._check(run)
        is_named = any(
            f"machine={BAD} is left out: {MAX_FAILURES} shards or starts" in line for line in lines
        )
        if begins_s == 0 and self.fails is not hangs and not is_named:
            raise ViolationError(f"{self}: the log does not name the machine")
        return run

    def _check(self, run: Run) -> None:
        if run.error:
            raise ViolationError(f"{self} ended with {run.error!r}")
        if run.reported != [*range(self.num_shards)] or run.dispatcher.abandoned:
            raise ViolationError(f"{self}: {run.reported} were generated, not each shard once")
        failed = [report for _, tick in run.ticks for report in tick.reports if report.unforeseen]
        if failed:
            raise ViolationError(f"{self}: rows of {len(failed)} shards failed that others can generate")
        convicted = {(shard.index, row) for shard in run.given if not shard.rehearse for row in shard.skip}
        if convicted != ({self.poison} if self.poison else set()):
            raise ViolationError(f"{self}: {convicted} were left out")
        budget = Budget(ErrorsSpec())
        for _, tick in run.ticks:
            budget.watch(tick)


def random_scenario(seed: int) -> Scenario:
    """The scenario of a seed."""
    random = Random(seed)
    workers, machines = random.choice(CLUSTERS)
    return Scenario(
        fails=random.choice(BEHAVIOURS),
        workers=workers,
        machines=machines,
        poison=random.choice((None, (random.randrange(SHARDS), random.randrange(ROWS)))),
        seed=seed,
    )


def _workers(fails: Fails, begins_s: float, poison: Poison | None, random: Random) -> type[Worker]:
    """Workers that fail so on the bad machine, from this moment on; `poison` kills them everywhere."""

    class OnSomeMachine(Worker):
        def __init__(self, actor: Actor, clock: Clock) -> None:
            super().__init__(actor, clock)
            self.failed: Rows = {}

        @property
        def is_broken(self) -> bool:
            return self.actor.machine == BAD and self.clock.now_s >= begins_s

        def ready(self) -> bool:
            self.clock.thread.sleep(random.uniform(1, 5))
            if self.is_broken and fails in AT_THE_START:
                fails(self)
            return True

        def generate(self, shard: Shard) -> ShardReport:
            self.work(1)
            self.failed = fails(self) if self.is_broken and fails not in AT_THE_START else {}
            first, end = shard.rehearse or (0, shard.num_rows)
            rows = {(shard.index, row) for row in range(first, end) if row not in shard.skip}
            if poison in rows:
                self.actor.die()
            self.work(1)
            return report_of(shard, unforeseen=self.failed)

        def unfinished(self) -> dict[int, ShardSnapshot]:
            return {shard.index: ShardSnapshot(unforeseen=self.failed) for shard in self.shards[-1:]}

    return OnSomeMachine


@contextmanager
def _log_lines() -> Iterator[list[str]]:
    """What the pool logs within the block."""
    lines: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler: Any = Keeping()
    pool.logger.addHandler(handler)
    try:
        yield lines
    finally:
        pool.logger.removeHandler(handler)
