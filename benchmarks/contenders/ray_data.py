"""The same rows as a Ray Data job, in the form that Ray's documentation shows for Stable Diffusion.

A class loads the pipeline when its actor starts and calls it on each batch, between `read_parquet` and
`write_parquet`. A diffusers call takes one value of each parameter, so the rows of a batch that have equal
parameters share a call. Each batch records when it began and ended, so that the rate excludes Ray's start and
the loading of the pipeline.
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
    """The settings of a Ray Data job, without its rows."""

    checkpoint: Path
    family: str
    num_threads: int
    """torch's threads in the actor."""
    batch_rows: int
    dtype: str = "float32"
    num_gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Batch:
    """One call of the class; times are the wall clock's, in seconds since the epoch."""

    begun: float
    ended: float
    num_rows: int


class Predictor:
    """The class that `map_batches` calls."""

    def __init__(self, job: RayDataJob) -> None:
        # Imported here, as in the documentation: the driver needs no torch and starts faster without it.
        import torch

        from benchmarks.contenders.diffusers_loops import PlainDiffusers

        torch.set_num_threads(job.num_threads)
        self._batch_rows = job.batch_rows
        device = torch.device("cuda" if job.num_gpus else "cpu")
        self._plain = PlainDiffusers(job.checkpoint, job.family, device, getattr(torch, job.dtype))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A table of the rows' ids and images, and of the times when the batch began and ended."""
        begun = time.time()
        images: dict[str, bytes] = {}
        for group in groups(batch.to_pylist(), self._batch_rows):
            images |= zip((row["row_id"] for row in group), self._plain.generate(group), strict=True)
        times = {"begun": [begun] * len(images), "ended": [time.time()] * len(images)}
        return pa.table({"row_id": [*images], "image": [*images.values()]} | times)


@contextmanager
def local_ray(num_threads: int) -> Iterator[None]:
    """Start Ray on this machine, with a CPU for each thread of the actor and one more to read and write."""
    num_cpus = max(os.cpu_count() or 1, num_threads + 1)
    ray.init("local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def run(job: RayDataJob, path: Path, output: Path) -> list[Batch]:
    """Generate the rows of a Parquet file, and return the job's batches."""
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
    """The batches of a finished job, in the order in which they ran."""
    recorded = (
        pq.read_table(output, columns=["begun", "ended"])
        .group_by(["begun", "ended"])
        .aggregate([([], "count_all")])
    )
    return sorted(
        Batch(begun=batch["begun"], ended=batch["ended"], num_rows=batch["count_all"])
        for batch in recorded.to_pylist()
    )


def steady_rate(batches: Sequence[Batch]) -> float:
    """Rows per second without the first batch, which runs in a cold process."""
    return sum(batch.num_rows for batch in batches[1:]) / (batches[-1].ended - batches[0].ended)


def steady(job: RayDataJob, rows: Sequence[Row], folder: Path) -> Contender:
    """A contender that runs a job over these rows and gives the steady rate.

    An extra batch precedes the rows: it is the first batch, which is not counted.
    """
    extra = [row | {"row_id": f"extra-{row['row_id']}"} for row in rows[: job.batch_rows]]
    path = write_rows(folder / "ray-data.parquet", [*extra, *rows])
    return lambda: steady_rate(run(job, path, folder / "ray-data-out"))


def main() -> None:
    """Run one job with a Ray of its own, and print its rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", type=Path, help="a Parquet file that benchmarks.workloads has written")
    parser.add_argument("output", type=Path, help="the output folder; its previous content is deleted")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--family", choices=("sd", "sdxl"), default="sd")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads in the actor")
    parser.add_argument("--batch", type=int, default=16, help="the batch_size of map_batches")
    parser.add_argument("--gpus", type=int, choices=(0, 1), default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    job = RayDataJob(
        checkpoint=options.checkpoint,
        family=options.family,
        num_threads=options.threads,
        batch_rows=options.batch,
        dtype=options.dtype,
        num_gpus=options.gpus,
    )
    with local_ray(options.threads):
        finished = run(job, options.rows, options.output)
    print(f"{steady_rate(finished):.1f} rows/s in {len(finished)} batches")


if __name__ == "__main__":
    main()
