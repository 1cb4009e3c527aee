"""What a run has done so far."""

import time
from collections import Counter
from dataclasses import dataclass, field

from actors.process import peak_rss_bytes
from schemas.job import Shard, ShardReport
from schemas.wording.amounts import duration


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What a run took; no part depends on it."""

    seconds: float
    images: int
    images_per_second: float
    workers: int
    seconds_by_stage: dict[str, float]
    """Of all shards together: reading, waiting for the device, generating, encoding and writing."""
    checkpoint_loads: int
    """Of all workers together: with room for all of a job's models, at most one each for each worker."""
    worker_cpu_seconds: float
    """Of all workers together."""
    worker_peak_rss_bytes: int
    """Of the largest worker."""
    driver_cpu_seconds: float
    driver_peak_rss_bytes: int


@dataclass(slots=True)
class Tally:
    """What this run has done so far."""

    rows_total: int
    rows_before: int
    """Rows whose parts were there when this run began."""
    rows: int = 0
    """Rows of shards that this run has finished."""
    images: int = 0
    images_unfinished: int = 0
    failed: int = 0
    num_workers: int = 0
    seconds_by_stage: Counter[str] = field(default_factory=Counter)
    cpu_by_worker: dict[str, float] = field(default_factory=dict)
    loads_by_worker: dict[str, int] = field(default_factory=dict)
    worker_peak_rss_bytes: int = 0
    begun: float = field(default_factory=time.monotonic)
    working_since: float | None = None
    """When the first worker was up: the rate leaves the start of Ray out."""

    def add(self, report: ShardReport) -> None:
        """Count a finished shard."""
        self.rows += report.ok + report.filtered + report.failed
        self.images += report.images
        self.failed += report.failed
        self.seconds_by_stage.update(report.seconds)
        self.cpu_by_worker[report.worker] = report.cpu_seconds
        self.loads_by_worker[report.worker] = max(
            report.num_loads, self.loads_by_worker.get(report.worker, 0)
        )
        self.worker_peak_rss_bytes = max(self.worker_peak_rss_bytes, report.peak_rss_bytes)

    def tick(self, images_unfinished: int, num_workers: int) -> None:
        """Take in what the workers say between shards."""
        self.images_unfinished = images_unfinished
        self.num_workers = num_workers
        if self.working_since is None and num_workers:
            self.working_since = time.monotonic()

    @property
    def images_made(self) -> int:
        """Pictures so far, those of unfinished shards included."""
        return self.images + self.images_unfinished

    @property
    def rows_done(self) -> float:
        """Rows so far; those of unfinished shards by their pictures."""
        return min(self.rows_total, self.rows_before + self.rows + self.images_unfinished)

    @property
    def seconds(self) -> float:
        """Since this run began to work."""
        return time.monotonic() - self.begun

    @property
    def images_per_second(self) -> float:
        """Since the first worker was up."""
        if self.working_since is None:
            return 0.0
        return self.images_made / max(time.monotonic() - self.working_since, 0.1)

    @property
    def seconds_left(self) -> float | None:
        """At this run's pace; None before there is one."""
        made = self.rows_done - self.rows_before
        if made <= 0 or self.working_since is None:
            return None
        return (self.rows_total - self.rows_done) * (time.monotonic() - self.working_since) / made

    def figures(self) -> RunFigures:
        """For the summary, when all is done."""
        return RunFigures(
            seconds=self.seconds,
            images=self.images,
            images_per_second=self.images_per_second,
            workers=self.num_workers,
            seconds_by_stage={name: round(seconds, 2) for name, seconds in self.seconds_by_stage.items()},
            checkpoint_loads=sum(self.loads_by_worker.values()),
            worker_cpu_seconds=sum(self.cpu_by_worker.values()),
            worker_peak_rss_bytes=self.worker_peak_rss_bytes,
            driver_cpu_seconds=time.process_time(),
            driver_peak_rss_bytes=peak_rss_bytes(),
        )

    def line(self) -> str:
        """All of it on one line."""
        share = self.rows_done / self.rows_total if self.rows_total else 1.0
        return (
            f"{self.rows_done:,.0f} of {self.rows_total:,} rows ({share:.0%}) · "
            f"{self.images_per_second:.1f} images/s · {_left(self)} · "
            f"{self.failed:,} failed · {self.num_workers} {'worker' if self.num_workers == 1 else 'workers'}"
        )


def _left(tally: Tally) -> str:
    seconds = tally.seconds_left
    if not tally.num_workers:
        return "waiting for workers"
    return "starting" if seconds is None else f"{duration(seconds)} left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """A shard that was given up on in this run."""

    shard: Shard
    reason: str
