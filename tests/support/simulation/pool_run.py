"""Runs of the real pool over some shards, on a fake Ray whose workers a test describes."""

from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError

from jobs.dispatch.dispatcher import Dispatcher
from jobs.fleet.layout import Layout
from jobs.fleet.pool import Tick, WorkerPool
from schemas.errors import DarkroomError
from schemas.job import Job, Shard, ShardReport, ShardSnapshot, WorkerProgress
from schemas.output_layout import shard_name
from tests.support.simulation.fake_ray import Actor, FakeRay, installed
from tests.support.simulation.reports import report_of
from tests.support.simulation.simulated_time import Clock, Process
from tests.support.simulation.simulator import STALL_S, job_of

ROWS = 4
"""Rows of a shard."""
LONG_S = 10 * STALL_S
FOREVER = None
"""The time that a thread sleeps until its process ends."""


class Worker:
    """A worker's process, as the pool calls it: a shard takes a second. Tests replace what it does."""

    def __init__(self, actor: Actor, clock: Clock) -> None:
        self.actor = actor
        self.clock = clock
        self.started_s = clock.now_s
        self.shards: list[Shard] = []
        """The shards that it was given."""
        self.heartbeats = 0
        self.leaving = False

    def born(self) -> tuple[str, str]:
        return self.actor.machine, self.actor.machine

    def ready(self) -> bool:
        return True

    def run(self, shard: Shard) -> ShardReport:
        self.shards.append(shard)
        return self.generate(shard)

    def generate(self, shard: Shard) -> ShardReport:
        self.work(1)
        return report_of(shard)

    def progress(self) -> WorkerProgress:
        return WorkerProgress(unfinished=self.unfinished(), heartbeats=self.heartbeats, leaving=self.leaving)

    def unfinished(self) -> dict[int, ShardSnapshot]:
        return {}

    def work(self, seconds: float) -> None:
        """Work for this time, with a heartbeat a second."""
        for _ in range(round(seconds)):
            self.clock.thread.sleep(1)
            self.heartbeats += 1


class SlowWorker(Worker):
    """A shard takes longer than a stuck worker is waited for, and it gives heartbeats all the time."""

    def generate(self, shard: Shard) -> ShardReport:
        self.work(LONG_S)
        return report_of(shard)


def dying(error: Exception | None = None, *, after_s: float = 1) -> type[Worker]:
    """A worker that dies with its first shard, after this time and with this error."""

    class Dying(Worker):
        def generate(self, shard: Shard) -> ShardReport:
            self.work(after_s)
            self.actor.die(error)
            raise AssertionError("its process has ended")

    return Dying


class Run:
    """One run of the pool over some shards."""

    def __init__(
        self,
        *kinds: type[Worker],
        then: type[Worker] = Worker,
        num: int = 2,
        shards: dict[str, int] | None = None,
        max_attempts: int = 3,
        job: Job | None = None,
        machines: int = 1,
    ) -> None:
        """The first workers that are started are of these kinds, all later ones are of the kind `then`.

        `shards` are the numbers of shards by model. The workers are spread over the machines.
        """
        self._kinds, self._then = kinds, then
        self._job = job or job_of(ROWS)
        self._layout = Layout(num=num, num_gpus=0, num_cpus=1)
        self.clock = Clock()
        self.ray = FakeRay(self.clock, self._build, num_cpus=num // machines)
        for index in range(1, machines):
            self.ray.machines[f"machine-{index}"] = {"CPU": num // machines, "GPU": 0}
        self.dispatcher = dispatcher_of(shards or {"sd": 5}, max_attempts)
        self.ticks: list[tuple[float, Tick]] = []
        """The ticks, each with the simulated second."""
        self.error: BaseException | None = None
        self.num_alive_at_start: list[int] = []
        """For each worker, how many others were alive when it was started."""

    def _build(self, actor: Actor) -> Worker:
        index = len(self.ray.actors)
        self.num_alive_at_start.append(sum(other.process.alive for other in self.ray.actors))
        kind = self._kinds[index] if index < len(self._kinds) else self._then
        return kind(actor, self.clock)

    def run(self, at_tick: Callable[[int], object] = lambda number: None) -> "Run":
        """Run until all shards are done or the run ends; `at_tick` is called with the number of each tick."""
        Process(self.clock, "driver").start(self._drive, at_tick)
        with installed(self.ray):
            self.clock.run()
        return self

    def _drive(self, at_tick: Callable[[int], object]) -> None:
        try:
            with WorkerPool(self._job, self._layout) as pool:
                for tick in pool.run(self.dispatcher):
                    self.ticks.append((self.clock.now_s, tick))
                    at_tick(len(self.ticks))
        except (DarkroomError, RayTaskError, KeyboardInterrupt) as error:
            self.error = error

    @property
    def workers(self) -> list[Any]:
        """All workers that were started, in order."""
        return [actor.worker for actor in self.ray.actors]

    @property
    def given(self) -> list[Shard]:
        """All shards that were given to workers."""
        return [shard for worker in self.workers for shard in worker.shards]

    @property
    def reported(self) -> list[int]:
        """The indices of the shards whose reports arrived, sorted."""
        return sorted(report.index for _, tick in self.ticks for report in tick.reports)


def dispatcher_of(counts: dict[str, int], max_attempts: int = 3) -> Dispatcher:
    """A dispatcher over `counts` shards by model, numbered through."""
    first, num = 0, sum(counts.values())
    shards: dict[str, list[Shard]] = {}
    for model, count in counts.items():
        indices = range(first, first + count)
        shards[model] = [shard_of(index, num, model) for index in indices]
        first += count
    return Dispatcher(shards, max_attempts=max_attempts)


def shard_of(index: int, num: int, model: str) -> Shard:
    start = index * ROWS
    return Shard(
        index=index,
        name=shard_name(index, num),
        uri="s3://bucket/in.parquet",
        etag="e",
        model=model,
        start=start,
        stop=start + ROWS,
    )
