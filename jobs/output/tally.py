"""The counts of a run while it goes on, from which its figures are taken at the end."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import mean

from actors.process import peak_rss_bytes
from jobs.output.figures import PlannedTime, RunFigures, codes_text, rate_text
from schemas.job import FailedRows, Shard, ShardReport, Speed, merge_failed_rows
from schemas.wording.amounts import counted, duration

PACE_S = 120.0
"""What came this many seconds ago counts a third of what comes now for the rate that is shown."""
MAX_SPEEDS = 100
"""Kinds of images whose speed is recorded: those that took the most time."""
MAX_CODES = 3
"""Error codes that a line of progress names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersNow:
    """What the workers of a run are doing."""

    num_workers: int = 0
    """Workers that are up."""
    short_of: str = ""
    """If workers find no room: `2 of 2 CPUs in use`."""
    waits_for: str = ""
    """If workers wait for the store or the Hub: how many, and for what."""
    phases: Mapping[str, int] = field(default_factory=dict)
    """How many workers are in each phase, such as `loading sd` or `denoising`."""
    num_steps: int = 0
    """The denoising steps of single images that they have run so far."""


@dataclass(slots=True)
class Pace:
    """How fast rows and images come of late, and how long the remaining rows will take at this pace.

    It changes only when rows or images come. They come in bursts: between two of them the rate would sink
    and the time left would climb.
    """

    images_per_second: float = 0.0
    seconds_left: float | None = None
    """None until a row is done."""
    _images: float = 0.0
    _rows: float = 0.0
    _seconds: float = 0.0
    """Sums in which everything older counts less; see PACE_S."""
    _last: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """(seconds, images, rows) when something came last."""

    def update(self, seconds: float, images: float, rows: float, rows_left: float) -> None:
        """Count what has come. `seconds`: since the first worker was ready; `images`, `rows`: since then."""
        last_seconds, last_images, last_rows = self._last
        elapsed = seconds - last_seconds
        if elapsed <= 0 or (images <= last_images and rows <= last_rows):
            return
        kept = math.exp(-elapsed / PACE_S)
        self._seconds = self._seconds * kept + elapsed
        # A shard whose worker dies takes its unfinished images with it.
        self._images = self._images * kept + max(0.0, images - last_images)
        self._rows = self._rows * kept + max(0.0, rows - last_rows)
        self._last = seconds, images, rows
        self.images_per_second = self._images / self._seconds
        self.seconds_left = rows_left * self._seconds / self._rows if self._rows else None


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
    workers: WorkersNow = field(default_factory=WorkersNow)
    pace: Pace = field(default_factory=Pace)
    seconds_by_stage: Counter[str] = field(default_factory=Counter)
    cpu_by_worker: dict[str, float] = field(default_factory=dict)
    loads_by_worker: dict[str, int] = field(default_factory=dict)
    failures: Mapping[str, FailedRows] = field(default_factory=dict)
    """The failed rows of shards that this run has finished, by error_code."""
    worker_peak_rss_bytes: int = 0
    peak_device_bytes: int = 0
    speeds: dict[tuple[str | int, ...], Speed] = field(default_factory=dict)
    """The speeds of all finished shards, by kind."""
    loading_by_worker: dict[str, Mapping[str, float]] = field(default_factory=dict)
    """By worker, the seconds in which it loaded each model."""
    planned: PlannedTime | None = None
    """What was expected when the job began."""
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
        self.peak_device_bytes = max(self.peak_device_bytes, report.peak_device_bytes)
        self.loading_by_worker[report.worker] = report.load_seconds
        for speed in report.speeds:
            known = self.speeds.get(speed.kind)
            self.speeds[speed.kind] = known + speed if known else speed

    def tick(self, images_unfinished: int, workers: WorkersNow) -> None:
        """Update the progress of unfinished shards, and what the workers are doing."""
        self.images_unfinished = images_unfinished
        self.workers = workers
        self.ticked = time.monotonic()
        if self.working_since is None and workers.num_workers:
            self.working_since = self.ticked
        num_rows = self.rows_done - self.rows_before
        self.pace.update(
            self.working_seconds, self.images_generated, num_rows, self.rows_total - self.rows_done
        )

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
        """The rate of late; when all rows are done, that since the first worker was ready."""
        return self._mean_rate if self.rows_done >= self.rows_total else self.pace.images_per_second

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the pace of late; None until a row is done."""
        return 0.0 if self.rows_done >= self.rows_total else self.pace.seconds_left

    @property
    def _mean_rate(self) -> float:
        """Images per second since the first worker was ready; 0 before that."""
        return self.images_generated / self.working_seconds if self.working_seconds else 0.0

    def figures(self) -> RunFigures:
        """The figures of this run, taken when it is done."""
        return RunFigures(
            rows=self.rows,
            failed=self.failed,
            images=self.images,
            seconds=self.seconds,
            working_seconds=self.working_seconds,
            images_per_second=self._mean_rate,
            workers=self.workers.num_workers,
            seconds_by_stage={name: round(seconds, 2) for name, seconds in self.seconds_by_stage.items()},
            checkpoint_loads=sum(self.loads_by_worker.values()),
            worker_cpu_seconds=sum(self.cpu_by_worker.values()),
            worker_peak_rss_bytes=self.worker_peak_rss_bytes,
            peak_device_bytes=self.peak_device_bytes,
            speeds=self._speeds(),
            load_seconds=self._load_seconds(),
            planned=self.planned if self.planned and self.planned.rows == self.rows else None,
            driver_cpu_seconds=time.process_time(),
            driver_peak_rss_bytes=peak_rss_bytes(),
        )

    def _speeds(self) -> tuple[Speed, ...]:
        """The speeds that took the most time, with seconds as a person reads them."""
        longest = sorted(self.speeds.values(), key=lambda speed: -speed.seconds)[:MAX_SPEEDS]
        return tuple(
            replace(
                speed,
                step_seconds=round(speed.step_seconds, 4),
                image_seconds=round(speed.image_seconds, 4),
            )
            for speed in longest
        )

    def _load_seconds(self) -> dict[str, float]:
        """By model, the mean of the seconds in which workers loaded it."""
        models = sorted({model for loading in self.loading_by_worker.values() for model in loading})
        return {
            model: round(mean(each[model] for each in self.loading_by_worker.values() if model in each), 2)
            for model in models
        }

    def interrupted_line(self) -> str:
        """The work that is saved and lost if the run ends now, as one line for the terminal."""
        saved, total = self.rows_before + self.rows, counted(self.rows_total, "row")
        lost = counted(self.images_unfinished, "image")
        # A worker may have written a part, and not have said so yet.
        return f"interrupted: at least {saved:,} of {total} saved, at most {lost} of unfinished parts lost"

    def line(self) -> str:
        """The progress as one line for a log."""
        return f"{self.rows_text()} · {self.details()}"

    def rows_text(self) -> str:
        """`about 12 of 40 rows (30%)`."""
        share = self.rows_done / self.rows_total if self.rows_total else 1.0
        # The rows of unfinished parts are an estimate.
        about = "about " * bool(self.images_unfinished)
        return f"{about}{self.rows_done:,.0f} of {counted(self.rows_total, 'row')} ({share:.0%})"

    def details(self) -> str:
        """`1.8 images/s · 15 s left · 1 failed (1 invalid_image) · 2 workers: denoising (304 steps)`."""
        rate = [rate_text(self.images_per_second)] if self.images_generated else []
        return " · ".join([*rate, _time_left(self), self._failures_text(), _workers_text(self.workers)])

    def _failures_text(self) -> str:
        # Failures of earlier runs are not counted.
        scope = " in this run" * bool(self.rows_before)
        most = sorted(self.failures.items(), key=lambda item: -item[1].num_rows)
        codes = codes_text((code, failed.num_rows) for code, failed in most[:MAX_CODES])
        others = ", ..." * (len(most) > MAX_CODES)
        return f"{self.failed:,} failed{scope}{codes and f' ({codes}{others})'}"


def _time_left(tally: Tally) -> str:
    """`3 min 10 s left`, or why that is not known yet."""
    seconds, short_of = tally.seconds_left, tally.workers.short_of
    if not tally.workers.num_workers:
        return f"waiting for workers ({short_of})" if short_of else "waiting for workers"
    return "starting" if seconds is None else f"{duration(seconds)} left"


def _workers_text(workers: WorkersNow) -> str:
    """`3 workers: 2 denoising, 1 loading sd (1,204 steps) · 1 worker waits for ...`."""
    text = counted(workers.num_workers, "worker")
    if phases := sorted(workers.phases.items(), key=lambda item: -item[1]):
        alike = phases[0][1] == workers.num_workers
        text += f": {phases[0][0] if alike else ', '.join(f'{number:,} {phase}' for phase, number in phases)}"
    if workers.num_steps:
        text += f" ({counted(workers.num_steps, 'step')})"
    return f"{text} · {workers.waits_for}" if workers.waits_for else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """A shard that this run has left out."""

    shard: Shard
    reason: str
