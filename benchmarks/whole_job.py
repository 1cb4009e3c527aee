"""Whole jobs, from the command to the output's last byte: each is a process that starts its own Ray.

darkroom's `run` and a Ray Data job take turns over the same rows, with the same weights and the same number
of torch threads. The table shows the total time, the time until the first image, and the rate of a warm
process.

    python -m benchmarks.whole_job [--rows 256] [--rounds 3]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

from benchmarks.contenders.job_process import run_job_apart
from benchmarks.contenders.local_contenders import spec_for
from benchmarks.contenders.ray_data import batches, steady_rate
from benchmarks.contenders.timed_engine import arrivals
from benchmarks.race import surroundings
from benchmarks.workloads import WORKLOADS, Row, write_rows
from models.demo_cache import demo_checkpoint
from schemas.wording.amounts import counted

SHOWN = ("equal rows", "every row different")
"""The workloads that are measured: the best and the worst for plain batches."""
NUM_SHARDS = 2
"""The shards of darkroom's job: the warm rate is that of the second shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTimes:
    """The measurements of one job."""

    seconds: float
    first_image_s: float
    images_per_second: float
    """The rate without the images of the cold process: Ray Data's first batch or darkroom's first shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """The jobs over one file of rows, one for each contender."""

    rows: Path
    num_rows: int
    checkpoint: Path
    num_threads: int
    batch_rows: int

    def darkroom(self, output: Path) -> JobTimes:
        """The times of a job of `darkroom run` with one worker."""
        spec = spec_for(
            *(self.rows, output, self.checkpoint, "float32"),
            batching={"max_batch_rows": self.batch_rows, "shard_rows": -(-self.num_rows // NUM_SHARDS)},
            workers={"num": 1, "num_gpus": 0, "num_cpus": self.num_threads},
        )
        begun = time.time()
        run_job_apart(spec, "benchmarks.contenders.timed_engine:make_engine", quiet=True)
        ended, (cold, *warm) = time.time(), arrivals(spec.output.path)
        return JobTimes(
            seconds=ended - begun,
            first_image_s=cold.first - begun,
            images_per_second=sum(shard.num_images for shard in warm) / (warm[-1].last - cold.last),
        )

    def ray_data(self, output: Path) -> JobTimes:
        """The times of a Ray Data job, whose driver does nothing else."""
        options = ("--threads", str(self.num_threads), "--batch", str(self.batch_rows))
        paths = map(str, (self.rows, output, self.checkpoint))
        begun = time.time()
        subprocess.run(
            [sys.executable, "-m", "benchmarks.contenders.ray_data", *paths, *options],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ended, finished = time.time(), batches(output)
        return JobTimes(
            seconds=ended - begun,
            first_image_s=finished[0].ended - begun,
            images_per_second=steady_rate(finished),
        )


def median_times(jobs: Jobs, rounds: int) -> dict[str, JobTimes]:
    """The median times of each contender over the rounds, in which the contenders take turns."""
    contenders: dict[str, Callable[[Path], JobTimes]] = {"Ray Data": jobs.ray_data, "darkroom": jobs.darkroom}
    times: dict[str, list[JobTimes]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run_job in contenders.items():
            with tempfile.TemporaryDirectory() as folder:
                times[name].append(run_job(Path(folder, "out")))
    return {name: _medians(of_contender) for name, of_contender in times.items()}


def _medians(times: Sequence[JobTimes]) -> JobTimes:
    seconds, first_image_s, rate = (median(column) for column in zip(*map(astuple, times), strict=True))
    return JobTimes(seconds=seconds, first_image_s=first_image_s, images_per_second=rate)


def print_table(
    make_rows: Callable[[str], Sequence[Row]], num_threads: int, batch_rows: int, rounds: int
) -> None:
    """Print the table for the workloads that are measured; `make_rows` gives the rows of a workload."""
    print("| workload | whole job | seconds in all | first image after, s | images/s when warm |")
    print("|---|---|---|---|---|")
    for workload in SHOWN:
        rows = make_rows(workload)
        with tempfile.TemporaryDirectory() as folder:
            jobs = Jobs(
                rows=write_rows(Path(folder, "rows.parquet"), rows),
                num_rows=len(rows),
                checkpoint=demo_checkpoint("sd"),
                num_threads=num_threads,
                batch_rows=batch_rows,
            )
            for name, times in median_times(jobs, rounds).items():
                cells = " | ".join(f"{figure:.1f}" for figure in astuple(times))
                print(f"| {workload} | {name} | {cells} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="rows of a job (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each workload (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="mean number of denoising steps (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads in each job (%(default)s)")
    parser.add_argument(
        "--batch", type=int, default=16, help="max_batch_rows, and Ray Data's batch_size (%(default)s)"
    )
    options = parser.parse_args()
    print(f"{surroundings()}; {counted(options.rows, 'row')}, median of {counted(options.rounds, 'round')}\n")
    print_table(
        lambda workload: WORKLOADS[workload](options.rows, 64, options.steps),
        *(options.threads, options.batch, options.rounds),
    )


if __name__ == "__main__":
    main()
