"""Whole drivers in this process, on a fake Ray whose workers are real ones with a quick engine."""

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from rich.console import Console

from actors.engine.engine import Engine
from jobs.planning.plan import Plan
from jobs.reports.run_result import RunResult
from jobs.retry import retry_job
from jobs.run import run_job
from schemas.job import Shard, ShardReport, WorkerProgress
from schemas.spec.job_spec import JobSpec
from tests.support.engines import NoiseEngine
from tests.support.in_process import worker_for
from tests.support.running import Finished, darkroom_here
from tests.support.simulation.fake_ray import Actor, FakeRay, installed
from tests.support.simulation.simulated_time import Clock, Process

_T = TypeVar("_T")


class InProcessWorker:
    """What a WorkerProcess is to the pool; `run` takes a simulated second beside the real time."""

    def __init__(self, actor: Actor, driver: "InProcessDriver") -> None:
        self._actor = actor
        self._driver = driver
        worker = worker_for(Plan(job=actor.job, files=()), driver.engine(), num_threads=1)
        self._worker = driver.processes.enter_context(worker)

    def born(self) -> tuple[str, str]:
        return self._actor.machine, self._actor.machine

    def ready(self) -> bool:
        return True

    def run(self, shard: Shard) -> ShardReport:
        """Note the shard, let the test interfere, and do what a worker does."""
        self._driver.given.append(shard)
        self._actor.process.clock.thread.sleep(1)
        self._driver.before(self._actor, shard)
        report = self._worker.run(shard)
        self._driver.after(self._actor, shard)
        return report

    def progress(self) -> WorkerProgress:
        return self._worker.progress()


class InProcessDriver:
    """A driver of a job, which can be run several times."""

    def __init__(self, spec: JobSpec, *, num_workers: int = 2) -> None:
        self.spec = spec
        self.engine: Callable[[], Engine] = lambda: NoiseEngine(0)
        self.before: Callable[[Actor, Shard], object] = lambda actor, shard: None
        """Called by a worker before it runs a shard."""
        self.after: Callable[[Actor, Shard], object] = lambda actor, shard: None
        """Called by a worker after it has run a shard, before it answers."""
        self.given: list[Shard] = []
        """All shards that workers were given, in order."""
        self.processes = ExitStack()
        """What ends the workers' threads."""
        self._printed = io.StringIO()
        self._num_workers = num_workers

    @property
    def printed(self) -> str:
        """What the drivers printed."""
        return self._printed.getvalue()

    def run(self, *, extend: bool = False) -> RunResult:
        """Do what `darkroom run` does."""
        return self._on_fake_ray(lambda console: run_job(self.spec, console, extend=extend))

    def retry(self, *only: str) -> RunResult:
        """Do what `darkroom retry` does."""
        return self._on_fake_ray(lambda console: retry_job(self.spec, console, only))

    def command(self, *arguments: object, **options: Any) -> Finished:
        """Do what `python -m jobs` does with these arguments; the options are those of `darkroom_here`."""
        return self._on_fake_ray(lambda console: darkroom_here(*arguments, **options))

    def _on_fake_ray(self, drive: Callable[[Console], _T]) -> _T:
        with self.processes:
            return on_fake_ray(
                lambda: drive(Console(file=self._printed, width=200)),
                lambda actor: InProcessWorker(actor, self),
                num_cpus=self._num_workers,
            )


def on_fake_ray(drive: Callable[[], _T], build: Callable[[Actor], Any], *, num_cpus: int) -> _T:
    """What `drive` returns or raises, run as a process of a simulation whose Ray has these workers."""
    clock = Clock()
    outcome: list[Any] = []

    def call() -> None:
        with _kept(outcome):
            outcome.append(drive())

    Process(clock, "driver").start(call)
    with installed(FakeRay(clock, build, num_cpus=num_cpus)):
        clock.run()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    result: _T = outcome[0]
    return result


@contextmanager
def _kept(outcome: list[Any]) -> Iterator[None]:
    """Keep an exception, which would otherwise end the simulation before its other processes end."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again by `on_fake_ray`
        outcome.append(error)
