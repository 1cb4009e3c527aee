"""A job gives the same bytes in every process, by any workers, in any order of shards."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.pipelines.model_cache import ModelCache
from benchmarks.parity.plain_diffusers import IMAGE, MODELS, ROUTES, VARIED, row
from jobs.planning.plan import Plan
from schemas.job import Shard
from schemas.spec.job_spec import JobSpec
from tests.support.in_process import (
    Record,
    encoded,
    job_spec,
    loaded_models,
    make,
    plan_for,
    read_output,
    worker_for,
    write_rows,
)
from tests.support.running import ROOT

FLAT = encoded(Image.fromarray(np.full((64, 64), 500, np.uint16)))
BESIDE: list[Record] = [
    row("flat", "depth2img", "depth2img", image=IMAGE, depth_map=FLAT),
    row("no-picture", "sd", "img2img", image={"bytes": b"no picture", "path": None}),
    row("three", "sd", "text2img", num_images_per_prompt=3),
    row("chained", "sdxl", "chain"),
    row("chained-too", "sdxl", "chain", seed=8, num_inference_steps=5),
]
"""Rows that fail, that make several images, and that two models make one after the other."""
CHAIN: Record = {
    "refine": {"task": "img2img", "model": "sdxl-refiner", "num_inference_steps": 4, "denoising_start": 0.5},
    "chain": {
        "task": "text2img",
        "model": "sdxl",
        "num_inference_steps": 4,
        "denoising_end": 0.5,
        "then": ["refine"],
        "keep_steps": True,
    },
}
SHARD_ROWS = 9
"""Of sd's eighteen rows two shards, and none of one row alone."""
OF_EVERY_SYSTEM = [each for i, each in enumerate(VARIED) if i % 3 != 2]
"""Two rows of the three that differ in steps, guidance and scheduler."""

# Safe says so of every call without guidance.
pytestmark = pytest.mark.filterwarnings("ignore:Safety checker disabled:UserWarning")


def spec_into(rows: Path, folder: Path) -> JobSpec:
    changes: Record = {"models": MODELS, "routes": ROUTES | CHAIN, "batching": {"shard_rows": SHARD_ROWS}}
    return job_spec(rows, folder, **changes)


def make_by(plan: Plan, shards: Sequence[Shard], models: ModelCache, *, num_threads: int) -> None:
    """By a worker of their own, several of them at a time as on a cluster."""
    engine = DiffusersEngine(models, plan.job.spec)
    with worker_for(plan, engine, num_threads=num_threads) as worker, ThreadPoolExecutor(3) as callers:
        for report in callers.map(worker.run, shards):
            assert report.committed


def parts_in(plan: Plan) -> dict[str, bytes]:
    """The parts by their names."""
    parts = read_output(plan, []).parts
    return dict(zip((shard.name for shard in plan.shards()), parts, strict=True))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of every system."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.parquet", [*OF_EVERY_SYSTEM, *BESIDE])


@pytest.fixture(scope="module")
def models() -> ModelCache:
    """The models of this process's workers."""
    return loaded_models()


@pytest.fixture(scope="module")
def parts(rows: Path, models: ModelCache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """By one worker, one shard after the other."""
    spec = spec_into(rows, tmp_path_factory.mktemp("plain") / "out")
    made = make(spec, DiffusersEngine(models, spec))
    assert {each["row_id"] for each in made.rows if each["status"] != "ok"} == {"flat", "no-picture"}
    return parts_in(made.plan)


def test_two_workers_make_the_parts_that_one_makes(
    rows: Path, parts: dict[str, bytes], models: ModelCache, tmp_path: Path
) -> None:
    """Whichever gets which, in whatever order, and on however many threads they decode and encode."""
    plan = plan_for(spec_into(rows, tmp_path / "out"))
    backwards = [*plan.shards()][::-1]

    make_by(plan, backwards[::2], models, num_threads=1)
    make_by(plan, backwards[1::2], models, num_threads=5)

    assert parts_in(plan) == parts


def test_another_process_makes_the_same_parts(rows: Path, parts: dict[str, bytes], tmp_path: Path) -> None:
    """Hashes of texts, addresses and the clock differ there; neither shows."""
    command = [sys.executable, "-m", __name__, str(rows), str(tmp_path / "out"), str(torch.get_num_threads())]
    environment = os.environ | {"PYTHONHASHSEED": "1"}

    subprocess.run(command, check=True, env=environment, cwd=ROOT)

    assert parts_in(plan_for(spec_into(rows, tmp_path / "out"))) == parts


def main(rows: str, folder: str, num_torch_threads: str) -> None:
    """What the other process does."""
    torch.set_num_threads(int(num_torch_threads))
    plan = plan_for(spec_into(Path(rows), Path(folder)))
    make_by(plan, [*plan.shards()][::-1], loaded_models(), num_threads=3)


if __name__ == "__main__":
    main(*sys.argv[1:])
