"""The figures of a job. What each one counts is said here; commands and reports show them in these words.

There are two kinds. `Totals` are those of an output, whichever runs made it: they are in the footers of its
parts. `RunFigures` are those of one run: what it generated itself, and how long that took.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import FiniteFloat

from schemas.job import Speed, StoredCount
from schemas.wording.amounts import counted, duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the parts of an output, each part as it is now."""

    ok: int = 0
    filtered: int = 0
    failed: int = 0
    """Input rows by outcome; each row with an outcome counts once, however many images it has."""
    images: int = 0
    """Output rows with an image. Depth maps, images of earlier steps and dropped images do not count."""
    size_bytes: int = 0
    """The size of the Parquet files."""
    error_codes: tuple[tuple[str, int], ...] = ()
    """(error_code, number of failed rows), the most frequent code first."""

    @property
    def rows(self) -> int:
        """Input rows with an outcome."""
        return self.ok + self.filtered + self.failed

    def __add__(self, other: "Totals") -> "Totals":
        codes = Counter(dict(self.error_codes)) + Counter(dict(other.error_codes))
        return Totals(
            ok=self.ok + other.ok,
            filtered=self.filtered + other.filtered,
            failed=self.failed + other.failed,
            images=self.images + other.images,
            size_bytes=self.size_bytes + other.size_bytes,
            error_codes=tuple(codes.most_common()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTime:
    """How long a run was expected to take, from the start of Ray to its last part."""

    rows: StoredCount
    """Input rows that it was to give an outcome."""
    workers: StoredCount
    seconds: FiniteFloat
    least_seconds: FiniteFloat
    most_seconds: FiniteFloat
    source: str
    """What it was told from, for people."""

    @property
    def range_text(self) -> str:
        """`40 s to 1 min 5 s`."""
        least, most = duration(self.least_seconds), duration(self.most_seconds)
        return least if least == most else f"{least} to {most}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What one run did. Rows of earlier parts, and those that a retry leaves as they are, do not count."""

    rows: StoredCount = 0
    """Input rows that this run gave an outcome, in parts that are finished."""
    failed: StoredCount = 0
    """Those of them that failed."""
    images: StoredCount = 0
    """Images that this run stored for these rows."""
    seconds: FiniteFloat = 0.0
    """From the start of Ray to the last finished part; the plan and the reports are not counted."""
    working_seconds: FiniteFloat = 0.0
    """From the first worker's being ready to the last finished part."""
    images_per_second: FiniteFloat = 0.0
    """`images` / `working_seconds`."""
    workers: StoredCount = 0
    """Workers that were ready at the end."""
    seconds_by_stage: Mapping[str, FiniteFloat] = field(default_factory=dict)
    """Sums over all shards: reading, waiting for the device, generating, encoding and writing."""
    checkpoint_loads: StoredCount = 0
    """Sum over all workers: with memory for all models of the job, at most one per model and worker."""
    worker_cpu_seconds: FiniteFloat = 0.0
    """Sum over all workers."""
    worker_peak_rss_bytes: StoredCount = 0
    """Peak memory of the largest worker."""
    peak_device_bytes: StoredCount = 0
    """The most memory of a GPU that a worker's tensors took; 0 without a GPU."""
    speeds: tuple[Speed, ...] = ()
    """How long images of each kind took, on each kind of device: sums over all workers."""
    load_seconds: Mapping[str, FiniteFloat] = field(default_factory=dict)
    """By model, how long a worker took to load it: the mean of those that did."""
    planned: PlannedTime | None = None
    """What was expected before; None where nothing was, or for other rows than these."""
    driver_cpu_seconds: FiniteFloat = 0.0
    driver_peak_rss_bytes: StoredCount = 0


def outcomes_text(totals: Totals) -> str:
    """`39 rows ok, 0 filtered, 1 failed (1 invalid_size); 41 images`."""
    codes = f" ({codes_text(totals.error_codes)})" if totals.error_codes else ""
    return (
        f"{counted(totals.ok, 'row')} ok, {totals.filtered:,} filtered, {totals.failed:,} failed{codes}; "
        f"{counted(totals.images, 'image')}"
    )


def codes_text(error_codes: Iterable[tuple[str, int]]) -> str:
    """`3 invalid_image, 1 invalid_size`."""
    return ", ".join(f"{count:,} {code}" for code, count in error_codes)


def generated_text(figures: RunFigures) -> str:
    """`generated 552 images in 41 s (13.4 images/s)`: the time is `working_seconds`, the rate that of it.

    If a time was planned, what the run took is compared with it: both count from the start of Ray.
    """
    # A summary of an earlier version has no `working_seconds`.
    seconds = f" in {duration(figures.working_seconds)}" if figures.working_seconds else ""
    rate = f" ({rate_text(figures.images_per_second)})" if figures.images else ""
    planned = f"; {_planned_text(figures, figures.planned)}" if figures.planned else ""
    return f"generated {counted(figures.images, 'image')}{seconds}{rate}{planned}"


def _planned_text(figures: RunFigures, planned: PlannedTime) -> str:
    """`with the start 55 s, planned 40 s to 1 min 5 s with 2 workers`."""
    took = f"with the start {duration(figures.seconds)}"
    return f"{took}, planned {planned.range_text} with {counted(planned.workers, 'worker')}"


def rate_text(images_per_second: float) -> str:
    """`13.4 images/s`, or, where that is below one, `31.5 s/image`."""
    is_slow = 0 < images_per_second < 1
    return f"{1 / images_per_second:,.1f} s/image" if is_slow else f"{images_per_second:,.1f} images/s"
