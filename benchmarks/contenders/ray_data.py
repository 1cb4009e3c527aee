"""The same rows as a Ray Data job, in the form that Ray's documentation shows for Stable Diffusion.

A class that loads the pipeline when its actor starts and calls it on each batch, between `read_parquet` and
`write_parquet`. Of a batch the rows with equal parameters go into one call: a diffusers call takes one value
of each. Batches note when they began and ended, so that the rate can be told from Ray's start and the load.
"""

import argparse
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from benchmarks.race import Contender
from benchmarks.workloads import Row, groups, write_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class RayDataJob:
    """What stays the same whatever the rows are."""

    checkpoint: Path
    family: str
    num_threads: int
    """torch's, in the actor."""
    batch_rows: int
    dtype: str = "float32"
    num_gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Batch:
    """One call of the class; times are the wall clock's, in seconds."""

    begun: float
    ended: float
    num_rows: int


class Predictor:
    """What `map_batches` calls."""

    def __init__(self, job: RayDataJob) -> None:
        # Here, as in the documentation: the driver does without torch, and is that much quicker.
        import torch

        from benchmarks.contenders.diffusers_loops import PlainDiffusers

        torch.set_num_threads(job.num_threads)
        self._batch_rows = job.batch_rows
        device = torch.device("cuda" if job.num_gpus else "cpu")
        self._plain = PlainDiffusers(job.checkpoint, job.family, device, getattr(torch, job.dtype))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The rows' ids and pictures."""
        begun = time.time()
        made: dict[str, bytes] = {}
        for group in groups(batch.to_pylist(), self._batch_rows):
            made |= zip((row["row_id"] for row in group), self._plain.make(group), strict=True)
        times = {"begun": [begun] * len(made), "ended": [time.time()] * len(made)}
        return pa.table({"row_id": [*made], "image": [*made.values()]} | times)


@contextmanager
def ray_here(num_threads: int) -> Iterator[None]:
    """A Ray on this machine: the actor has its threads' CPUs, reading and writing one more."""
    num_cpus = max(os.cpu_count() or 1, num_threads + 1)
    ray.init("local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def run(job: RayDataJob, path: Path, output: Path) -> list[Batch]:
    """Make the rows of a Parquet file."""
    shutil.rmtree(output, ignore_errors=True)
    ray.data.read_parquet(str(path)).map_batches(
        Predictor,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_size=job.batch_rows,
        batch_format="pyarrow",
        num_cpus=job.num_threads,
        num_gpus=job.num_gpus,
    ).write_parquet(str(output))
    return batches(output)


def batches(output: Path) -> list[Batch]:
    """Those of a finished job, in the order in which they were made."""
    noted = (
        pq.read_table(output, columns=["begun", "ended"])
        .group_by(["begun", "ended"])
        .aggregate([([], "count_all")])
    )
    return sorted(
        Batch(begun=each["begun"], ended=each["ended"], num_rows=each["count_all"])
        for each in noted.to_pylist()
    )


def steady_rate(made: Sequence[Batch]) -> float:
    """Rows a second after the first batch, which meets a cold process."""
    return sum(batch.num_rows for batch in made[1:]) / (made[-1].ended - made[0].ended)


def steady(job: RayDataJob, rows: Sequence[Row], folder: Path) -> Contender:
    """The rate over these rows, of a job with a batch more in front of them: that one is not counted."""
    extra = [row | {"row_id": f"extra-{row['row_id']}"} for row in rows[: job.batch_rows]]
    path = write_rows(folder / "ray-data.parquet", [*extra, *rows])
    return lambda: steady_rate(run(job, path, folder / "ray-data-out"))


def main() -> None:
    """One job by itself, with a Ray that starts and ends with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", type=Path, help="a Parquet file as benchmarks.workloads writes it")
    parser.add_argument("output", type=Path, help="a folder; what is in it is removed")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--family", choices=("sd", "sdxl"), default="sd")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="torch's, in the actor")
    parser.add_argument("--batch", type=int, default=16, help="map_batches' batch_size")
    parser.add_argument("--gpus", type=int, choices=(0, 1), default=0)
    wanted = parser.parse_args()
    logging.disable(logging.WARNING)
    job = RayDataJob(
        checkpoint=wanted.checkpoint,
        family=wanted.family,
        num_threads=wanted.threads,
        batch_rows=wanted.batch,
        dtype=wanted.dtype,
        num_gpus=wanted.gpus,
    )
    with ray_here(wanted.threads):
        made = run(job, wanted.rows, wanted.output)
    print(f"{steady_rate(made):.1f} rows/s in {len(made)} batches")


if __name__ == "__main__":
    main()
