"""The CPU time that darkroom itself needs for each row, and its memory for jobs of different sizes.

A constant image replaces generation. Everything else is real: the plan, Ray, reading, routing, encoding and
parts. The CPU times of driver and worker are added up. The time to encode as many images, which is measured
separately in the same run, is subtracted.

    python -m benchmarks.overhead [--rows 10000 100000]
"""

import argparse
import json
import random
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.images.encoding import encode
from benchmarks.contenders.constant_engine import PIXELS
from benchmarks.contenders.job_process import run_job_apart
from schemas.spec.job_spec import JobSpec

WORDS = (
    "a",
    "red",
    "fox",
    "harbour",
    "at",
    "dawn",
    "oil",
    "painting",
    "of",
    "two",
    "old",
    "trains",
    "in",
    "fog",
)
LIMIT_MS = 1.5
"""The target: at most this much CPU time for each row beyond encoding."""


def write_rows(path: Path, num_rows: int) -> None:
    """Write a Parquet file of text-to-image rows whose steps and guidance vary."""
    rng = random.Random(0)
    table = pa.table(
        {
            "row_id": [f"row-{i:09d}" for i in range(num_rows)],
            "prompt": [" ".join(rng.choices(WORDS, k=12)) for _ in range(num_rows)],
            "num_inference_steps": [rng.randint(20, 50) for _ in range(num_rows)],
            "guidance_scale": [round(rng.uniform(1, 9), 1) for _ in range(num_rows)],
        }
    )
    pq.write_table(table, path)


def run_once(folder: Path, num_rows: int) -> dict[str, Any]:
    """Run one job in a separate driver process, and return the figures of its run from the summary."""
    write_rows(folder / "rows.parquet", num_rows)
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "name": "overhead",
            "input": {"path": str(folder / "rows.parquet")},
            "models": {"sd": {"checkpoint": "demo:sd"}},
            "routes": {"text2img": {"model": "sd"}},
            "output": {"path": str(folder / f"out-{num_rows}")},
            "workers": {"num": 1, "num_gpus": 0, "num_cpus": 1},
        }
    )
    run_job_apart(spec, "benchmarks.contenders.constant_engine:make_engine")
    summary = json.loads((folder / f"out-{num_rows}" / "_darkroom" / "summary.json").read_bytes())
    assert summary["ok"] == num_rows
    return dict(summary["last_run"])


def encoding_ms() -> float:
    """The CPU time to encode one image on one thread, in milliseconds."""
    begun = time.process_time()
    for _ in range(2000):
        encode(PIXELS, "png")
    return (time.process_time() - begun) / 2000 * 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[10_000, 100_000], help="rows of each job (%(default)s)"
    )
    sizes = parser.parse_args().rows
    encoding = encoding_ms()
    print(f"Python {sys.version.split()[0]}, ray {version('ray')}, pyarrow {version('pyarrow')}")
    print(f"encoding one {PIXELS.shape[1]}x{PIXELS.shape[0]} PNG: {encoding:.2f} ms of CPU\n")
    print("| rows | driver ms | worker ms | beyond encoding, ms | driver peak MB | worker peak MB | rows/s |")
    print("|---|---|---|---|---|---|---|")
    for num_rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            figures = run_once(Path(folder), num_rows)
        driver = figures["driver_cpu_seconds"] / num_rows * 1000
        worker = figures["worker_cpu_seconds"] / num_rows * 1000
        beyond = driver + worker - encoding
        print(
            f"| {num_rows:,} | {driver:.2f} | {worker:.2f} | {beyond:.2f} of {LIMIT_MS} "
            f"| {figures['driver_peak_rss_bytes'] / 1e6:.0f} | {figures['worker_peak_rss_bytes'] / 1e6:.0f} "
            f"| {num_rows / figures['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
