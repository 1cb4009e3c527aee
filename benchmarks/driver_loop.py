"""What the driver's loop costs with many workers: answers a second, CPU per answer, the longest wait, memory.

The pool, the dispatcher, the tally and the budget are darkroom's own. Ray and the workers are stand-ins in
this process: a shard takes a random time and costs no CPU. What Ray itself costs is not in these figures.

    python -m benchmarks.driver_loop                       # 1,000 workers, and up to 1,000,000 shards
    python -m benchmarks.driver_loop --shards 10000        # only as many shards
"""

import argparse
import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from actors.process import peak_rss_bytes
from benchmarks.race import surroundings
from jobs.dispatch.dispatcher import Dispatcher
from jobs.fleet import layout, machines, pool
from jobs.fleet.budget import Budget
from jobs.fleet.layout import Layout
from jobs.output.tally import Tally
from schemas.columns.input_columns import ColumnMap
from schemas.job import Job, Shard, ShardReport, WorkerProgress
from schemas.output_layout import shard_name
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import size_text

MODEL = "sd"
ROWS = 256
"""Rows of a shard."""
SHARD_S = (0.2, 0.6)
"""The time that a shard takes, at least and at most. A worker has two at once."""


class Ref:
    """The answer to a call, which is there from a moment on."""

    __slots__ = ("answer", "ready_at")

    def __init__(self, answer: Any, ready_at: float) -> None:
        self.answer = answer
        self.ready_at = ready_at

    def __lt__(self, other: "Ref") -> bool:
        return self.ready_at < other.ready_at


class StandInRay:
    """The functions of the module `ray` that the pool calls."""

    def __init__(self, num_seats: int, shard_s: tuple[float, float]) -> None:
        self._num_seats = num_seats
        self._shard_s = shard_s
        self._pending: list[Ref] = []
        self._ready: deque[Ref] = deque()
        self.longest_wait_s = 0.0
        """The longest time between an answer and the moment at which the driver took it."""

    def put(self, value: Any) -> Any:
        return value

    def remote(self, worker_class: type) -> "StandInRay":
        return self

    def options(self, **_: Any) -> "ActorClass":
        return ActorClass(self)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "node", "Alive": True, "Resources": {"CPU": self._num_seats}, "Labels": {}}]

    def call(self, answer: Any, *, takes_time: bool = False) -> Ref:
        """Answer at once, or after the time of a shard."""
        delay_s = random.uniform(*self._shard_s) if takes_time else 0.0
        ref = Ref(answer, time.monotonic() + delay_s)
        heapq.heappush(self._pending, ref)
        return ref

    def wait(self, refs: Sequence[Ref], *, num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        """Those of the calls that are answered, at most `num_returns`, and all others."""
        give_up = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            while self._pending and self._pending[0].ready_at <= now:
                self._ready.append(heapq.heappop(self._pending))
            if len(self._ready) >= num_returns or now >= give_up:
                break
            next_at = self._pending[0].ready_at if self._pending else give_up
            time.sleep(max(0.0, min(give_up, next_at) - now))
        taken = [self._ready.popleft() for _ in range(min(num_returns, len(self._ready)))]
        ids = {*map(id, taken)}
        return taken, [ref for ref in refs if id(ref) not in ids]

    def get(self, ref: Ref) -> Any:
        self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - ref.ready_at)
        return ref.answer

    def kill(self, actor: object, *, no_restart: bool) -> None:
        """Do nothing."""


class ActorClass:
    """What `ray.remote(RayWorker).options()` returns."""

    def __init__(self, ray: StandInRay) -> None:
        self._ray = ray

    def remote(self, job: Job, **_: Any) -> "Actor":
        return Actor(self._ray)


@dataclass
class Method:
    """A method of an actor."""

    call: Callable[..., Ref]

    def remote(self, *arguments: Any) -> Ref:
        return self.call(*arguments)


class Actor:
    """A worker that generates nothing."""

    def __init__(self, ray: StandInRay) -> None:
        self.born = Method(lambda: ray.call(("node", "host")))
        self.ready = Method(lambda: ray.call(True))
        self.progress = Method(lambda: ray.call(WorkerProgress(unfinished={}, heartbeats=0, leaving=False)))
        self.run = Method(lambda shard: ray.call(report_of(shard), takes_time=True))


def report_of(shard: Shard) -> ShardReport:
    """The report of a shard whose rows are all `ok`."""
    return ShardReport(
        index=shard.index,
        committed=True,
        ok=ROWS,
        filtered=0,
        failed=0,
        images=ROWS,
        size_bytes=1,
        failures={},
        unforeseen={},
        seconds={"generate": 1.0},
        models_loaded=(MODEL,),
        num_loads=1,
        worker="host:1",
        cpu_seconds=1.0,
        peak_rss_bytes=1,
    )


def job() -> Job:
    """A job with one model."""
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "name": "driver-loop",
            "input": {"path": "s3://bucket/in"},
            "models": {MODEL: {"checkpoint": "demo:sd"}},
            "routes": {"text2img": {"model": MODEL}},
            "output": {"path": "s3://bucket/out"},
        }
    )
    return Job(
        spec=spec,
        models={},
        columns=ColumnMap(fields={}, recognised={}, keep={}, id_type=pa.string()),
        schema=b"",
    )


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of one large file, each made when it is asked for."""

    num: int

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, position: int, /) -> Shard:
        return Shard(
            index=position,
            name=shard_name(position, self.num),
            uri="s3://bucket/in.parquet",
            etag="e",
            model=MODEL,
            start=position * ROWS,
            stop=(position + 1) * ROWS,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of one run."""

    answers_per_s: float
    cpu_ms: float
    """CPU of the driver for each answer of a shard, the stand-ins' own included."""
    longest_wait_s: float
    peak_rss_bytes: int


def measure(num_seats: int, num_shards: int, shard_s: tuple[float, float]) -> Measured:
    """Run a job of that many shards with that many workers."""
    ray = StandInRay(num_seats, shard_s)
    dispatcher = Dispatcher({MODEL: Shards(num_shards)}, max_attempts=3)
    started = job()
    tally, budget = Tally(rows_total=num_shards * ROWS, rows_before=0), Budget(started.spec.errors)
    size = Layout(num=num_seats, num_gpus=0, num_cpus=1)
    with (
        patch.object(pool, "ray", ray),
        patch.object(layout, "ray", ray),
        patch.object(machines, "ray", ray),
        pool.WorkerPool(started, size) as workers,
    ):
        begun, cpu = time.monotonic(), time.process_time()
        for tick in workers.run(dispatcher):
            for report in tick.reports:
                tally.add(report)
            tally.tick(0, tick)
            budget.watch(tick)
        seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    assert tally.rows == num_shards * ROWS
    return Measured(
        answers_per_s=num_shards / seconds,
        cpu_ms=1000 * cpu / num_shards,
        longest_wait_s=ray.longest_wait_s,
        peak_rss_bytes=peak_rss_bytes(),
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.driver_loop", description=__doc__)
    parser.add_argument("--workers", type=int, default=1_000, help="number of workers (%(default)s)")
    parser.add_argument("--shards", type=int, default=1_000_000, help="the most shards (%(default)s)")
    arguments = parser.parse_args()
    print(surroundings())
    print("\n| workers | a shard takes | shards | answers/s | CPU per answer | longest wait | peak memory |")
    print("|---|---|---|---|---|---|---|")
    sizes = [size for size in (10_000, 100_000, 1_000_000) if size <= arguments.shards]
    for num_shards, shard_s in ((sizes[0], SHARD_S), *((size, (0.0, 0.0)) for size in sizes)):
        measured = measure(arguments.workers, num_shards, shard_s)
        takes = f"{shard_s[0]:g} to {shard_s[1]:g} s" if shard_s[1] else "no time"
        print(
            f"| {arguments.workers:,} | {takes} | {num_shards:,} | {measured.answers_per_s:,.0f} "
            f"| {measured.cpu_ms:.2f} ms | {measured.longest_wait_s:.2f} s "
            f"| {size_text(measured.peak_rss_bytes)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
