"""The counts of a run while it goes on, from which its figures are taken at the end."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from actors.process import peak_rss_bytes
from jobs.output.figures import RunFigures, rate_text
from schemas.job import FailedRows, Shard, ShardReport, merge_failed_rows
from schemas.wording.amounts import counted, duration


@dataclass(slots=True)
class Tally:
    """The counts of a run so far."""

    rows_total: int
    """Rows of the whole job, or the failed rows that a retry generates again."""
    rows_before: int
    """Rows whose parts existed when this run began."""
    rows: int = 0
    """Rows that this run has given an outcome, in shards that it has finished."""
    images: int = 0
    """Images that this run has stored for these rows."""
    images_unfinished: int = 0
    """Images so far of shards that are not finished."""
    failed: int = 0
    """Those of `rows` that failed."""
    num_workers: int = 0
    """Workers that are ready now."""
    short_of: str = ""
    """What workers that find no room are short of."""
    waits_for: str = ""
    """How many workers wait for the store or the Hub, and why."""
    seconds_by_stage: Counter[str] = field(default_factory=Counter)
    cpu_by_worker: dict[str, float] = field(default_factory=dict)
    loads_by_worker: dict[str, int] = field(default_factory=dict)
    failures: Mapping[str, FailedRows] = field(default_factory=dict)
    """The failed rows of shards that this run has finished, by error_code."""
    worker_peak_rss_bytes: int = 0
    begun: float = field(default_factory=time.monotonic)
    working_since: float | None = None
    """When the first worker was ready: the rate excludes the time in which Ray starts."""
    ticked: float | None = None
    """The time of the last tick. Every duration ends there, so what is shown last is what is recorded."""

    def add(self, report: ShardReport) -> None:
        """Count a finished shard."""
        self.rows += report.ok + report.filtered + report.failed
        self.images += report.images
        self.failed += report.failed
        self.failures = merge_failed_rows([self.failures, report.failures])
        self.seconds_by_stage.update(report.seconds)
        self.cpu_by_worker[report.worker] = report.cpu_seconds
        self.loads_by_worker[report.worker] = max(
            report.num_loads, self.loads_by_worker.get(report.worker, 0)
        )
        self.worker_peak_rss_bytes = max(self.worker_peak_rss_bytes, report.peak_rss_bytes)

    def tick(self, images_unfinished: int, num_workers: int, short_of: str = "", waits_for: str = "") -> None:
        """Update the progress of unfinished shards, the number of workers, and what they wait for."""
        self.images_unfinished = images_unfinished
        self.num_workers = num_workers
        self.short_of, self.waits_for = short_of, waits_for
        self.ticked = time.monotonic()
        if self.working_since is None and num_workers:
            self.working_since = self.ticked

    @property
    def images_generated(self) -> int:
        """Images so far, including those of unfinished shards."""
        return self.images + self.images_unfinished

    @property
    def rows_done(self) -> float:
        """Rows with an outcome so far; for unfinished shards, the number of images is an estimate of it."""
        return min(self.rows_total, self.rows_before + self.rows + self.images_unfinished)

    @property
    def seconds(self) -> float:
        """Seconds from the beginning of this run to the last tick."""
        return 0.0 if self.ticked is None else self.ticked - self.begun

    @property
    def working_seconds(self) -> float:
        """Seconds from the tick at which the first worker was ready to the last one; 0 before that."""
        if self.working_since is None or self.ticked is None:
            return 0.0
        return self.ticked - self.working_since

    @property
    def images_per_second(self) -> float:
        """Images per second since the first worker was ready; 0 before that."""
        return self.images_generated / self.working_seconds if self.working_seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at this run's present rate; None until a row is done."""
        num_rows = self.rows_done - self.rows_before
        if num_rows <= 0 or self.working_since is None:
            return None
        return (self.rows_total - self.rows_done) * self.working_seconds / num_rows

    def figures(self) -> RunFigures:
        """The figures of this run, taken when it is done."""
        return RunFigures(
            rows=self.rows,
            failed=self.failed,
            images=self.images,
            seconds=self.seconds,
            working_seconds=self.working_seconds,
            images_per_second=self.images_per_second,
            workers=self.num_workers,
            seconds_by_stage={name: round(seconds, 2) for name, seconds in self.seconds_by_stage.items()},
            checkpoint_loads=sum(self.loads_by_worker.values()),
            worker_cpu_seconds=sum(self.cpu_by_worker.values()),
            worker_peak_rss_bytes=self.worker_peak_rss_bytes,
            driver_cpu_seconds=time.process_time(),
            driver_peak_rss_bytes=peak_rss_bytes(),
        )

    def interrupted_line(self) -> str:
        """The work that is saved and lost if the run ends now, as one line for the terminal."""
        saved, total = self.rows_before + self.rows, counted(self.rows_total, "row")
        lost = counted(self.images_unfinished, "image")
        # A worker may have written a part, and not have said so yet.
        return f"interrupted: at least {saved:,} of {total} saved, at most {lost} of unfinished parts lost"

    def line(self) -> str:
        """The progress as one line for the terminal."""
        share = self.rows_done / self.rows_total if self.rows_total else 1.0
        # The rows of unfinished parts are an estimate, and failures of earlier runs are not counted.
        about, scope = "about " * bool(self.images_unfinished), " in this run" * bool(self.rows_before)
        return (
            f"{about}{self.rows_done:,.0f} of {counted(self.rows_total, 'row')} ({share:.0%}) · "
            f"{rate_text(self.images_per_second)} · {_time_left(self)} · "
            f"{self.failed:,} failed{scope} · {counted(self.num_workers, 'worker')}"
            f"{self.waits_for and f' · {self.waits_for}'}"
        )


def _time_left(tally: Tally) -> str:
    """`3 min 10 s left`, or why that is not known yet."""
    seconds = tally.seconds_left
    if not tally.num_workers:
        return f"waiting for workers ({tally.short_of})" if tally.short_of else "waiting for workers"
    return "starting" if seconds is None else f"{duration(seconds)} left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """A shard that this run has left out."""

    shard: Shard
    reason: str
