"""Whole jobs, each a process with a Ray of its own: from the command to the output's last byte.

darkroom's `run` and a Ray Data job make the same rows in turns, with the same weights and as many torch
threads. Beside the seconds in all stand those until the first picture, and the rate of a warm process.

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

SHOWN = ("equal rows", "every row different")
"""Workloads: the one that suits plain batches best, and the one that suits them least."""
NUM_SHARDS = 2
"""Of darkroom's: the rate is that of the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a job took."""

    seconds: float
    first_image_s: float
    images_per_second: float
    """Without what the process made while it was cold: Ray Data's first batch, darkroom's first shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """Makes one file of rows, again and again."""

    rows: Path
    num_rows: int
    checkpoint: Path
    num_threads: int
    batch_rows: int

    def darkroom(self, output: Path) -> Taken:
        """As `darkroom run` does, with one worker."""
        spec = spec_for(
            *(self.rows, output, self.checkpoint, "float32"),
            batching={"max_batch_rows": self.batch_rows, "shard_rows": -(-self.num_rows // NUM_SHARDS)},
            workers={"num": 1, "num_gpus": 0, "num_cpus": self.num_threads},
        )
        begun = time.time()
        run_job_apart(spec, "benchmarks.contenders.timed_engine:make_engine", quiet=True)
        ended, (cold, *warm) = time.time(), arrivals(spec.output.path)
        return Taken(
            seconds=ended - begun,
            first_image_s=cold.first - begun,
            images_per_second=sum(shard.num_images for shard in warm) / (warm[-1].last - cold.last),
        )

    def ray_data(self, output: Path) -> Taken:
        """A driver that does nothing but this."""
        options = ("--threads", str(self.num_threads), "--batch", str(self.batch_rows))
        places = map(str, (self.rows, output, self.checkpoint))
        begun = time.time()
        subprocess.run(
            [sys.executable, "-m", "benchmarks.contenders.ray_data", *places, *options],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ended, made = time.time(), batches(output)
        return Taken(
            seconds=ended - begun,
            first_image_s=made[0].ended - begun,
            images_per_second=steady_rate(made),
        )


def take_turns(jobs: Jobs, rounds: int) -> dict[str, Taken]:
    """The medians of each one's rounds."""
    contenders: dict[str, Callable[[Path], Taken]] = {"Ray Data": jobs.ray_data, "darkroom": jobs.darkroom}
    taken: dict[str, list[Taken]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, make in contenders.items():
            with tempfile.TemporaryDirectory() as folder:
                taken[name].append(make(Path(folder, "out")))
    return {name: _medians(each) for name, each in taken.items()}


def _medians(taken: Sequence[Taken]) -> Taken:
    seconds, first_image_s, rate = (median(column) for column in zip(*map(astuple, taken), strict=True))
    return Taken(seconds=seconds, first_image_s=first_image_s, images_per_second=rate)


def print_table(
    make_rows: Callable[[str], Sequence[Row]], num_threads: int, batch_rows: int, rounds: int
) -> None:
    """For some workloads, whose rows `make_rows` makes."""
    print("| workload | whole job | seconds in all | first picture after, s | pictures/s when warm |")
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
            for name, taken in take_turns(jobs, rounds).items():
                cells = " | ".join(f"{figure:.1f}" for figure in astuple(taken))
                print(f"| {workload} | {name} | {cells} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="mean number of denoising steps")
    parser.add_argument("--threads", type=int, default=1, help="torch's, of either")
    parser.add_argument("--batch", type=int, default=16, help="max_batch_rows, and Ray Data's batch_size")
    wanted = parser.parse_args()
    print(f"{surroundings()}; {wanted.rows} rows, median of {wanted.rounds} rounds\n")
    print_table(
        lambda workload: WORKLOADS[workload](wanted.rows, 64, wanted.steps),
        *(wanted.threads, wanted.batch, wanted.rounds),
    )


if __name__ == "__main__":
    main()
