"""The contenders that run in this process: loops of plain diffusers, darkroom's engine, a darkroom worker."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actors.engine.batching.merged_modules import CallCount
from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.pipelines.loaded_model import weight_bytes
from actors.engine.pipelines.model_cache import ModelCache
from actors.images.spool import Spool
from actors.rows.opened_rows import OpenedRow, open_images
from actors.rows.shard_reader import ShardReader
from actors.storage.output import open_output
from actors.storage.stores import Stores
from actors.worker import Worker
from benchmarks.contenders.diffusers_loops import PlainDiffusers
from benchmarks.workloads import Row, write_rows
from jobs.planning.plan import Plan, make_plan
from jobs.planning.survey import survey
from schemas.spec.job_spec import JobSpec, ModelSpec

R0, R0B, R1, DARKROOM = "R0 one by one", "R0b grouped", "R1 engine", "darkroom"
MODEL = "model"
"""The only one's name."""
CAPACITY_BYTES = 10**12
"""Of weights in memory: no model has to go."""

Run = Callable[[], int]
"""Goes through all rows once; how many were made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all contenders have in common."""

    checkpoint: Path
    family: str
    """sd or sdxl."""
    device: torch.device
    dtype: str
    num_threads: int
    """Of darkroom's decoders and encoders; torch's own are the process's."""
    batch_rows: int
    """max_batch_rows, and the largest batch of the loops that group rows."""
    compiled: bool = False

    def plain(self) -> PlainDiffusers:
        """diffusers alone, with weights of its own."""
        dtype = getattr(torch, self.dtype)
        return PlainDiffusers(self.checkpoint, self.family, self.device, dtype, compiled=self.compiled)

    def plan(self, path: Path, output: Path) -> Plan:
        """darkroom's plan for a file of rows, with all of them in one shard."""
        batching = {"max_batch_rows": self.batch_rows, "compile": self.compiled, "shard_rows": 100_000}
        spec = spec_for(path, output, self.checkpoint, self.dtype, batching=batching)
        return make_plan(survey(spec))[0]


def spec_for(path: Path, output: Path, checkpoint: Path, dtype: str, **sections: Any) -> JobSpec:
    """darkroom's job over a file of rows; `sections` are more of the spec's."""
    return JobSpec.model_validate(
        {
            "version": 1,
            "name": "throughput",
            "input": {"path": str(path)},
            "models": {MODEL: {"checkpoint": str(checkpoint), "dtype": dtype}},
            "routes": {task: {"model": MODEL} for task in ("text2img", "img2img", "inpaint")},
            "default_route": "text2img",
            "output": {"path": str(output)},
        }
        | sections
    )


class Darkroom:
    """The engine with what a worker keeps between shards."""

    def __init__(self, setting: Setting) -> None:
        spec = ModelSpec.model_validate({"checkpoint": str(setting.checkpoint), "dtype": setting.dtype})
        on_gpu = setting.device.type == "cuda"
        # As make_engine of actors/engine/diffusers_engine.py has it, but the caller chooses the device.
        self.models = ModelCache({MODEL: spec}, setting.device, CAPACITY_BYTES, channels_last=on_gpu)
        self.counts: dict[str, CallCount] = {}
        """What went through each kind of module in the last run."""
        self._setting = setting

    @property
    def weights_mb(self) -> float:
        """Megabytes of weights in memory."""
        return weight_bytes(self.models.get(MODEL).components) / 1e6

    def in_memory(self, plan: Plan) -> Run:
        """Rows that are in memory already, to pixels."""
        rows = [*_opened(plan)]

        def run() -> int:
            with ThreadPoolExecutor(self._setting.num_threads) as decoders:
                made = self._engine(plan).generate(rows, decoders)
                return sum(generated.problem is None for generated in made)

        return run

    def worker(self, plan: Plan, output: Path) -> Run:
        """A worker's whole way: Parquet in, one part out."""

        def run() -> int:
            shutil.rmtree(output, ignore_errors=True)
            with Worker(
                plan.job,
                engine=self._engine(plan),
                stores=Stores(),
                output=open_output(plan.job.spec.output.path),
                num_threads=self._setting.num_threads,
            ) as worker:
                return sum(worker.run(shard).ok for shard in plan.shards())

        return run

    def _engine(self, plan: Plan) -> DiffusersEngine:
        """One that counts from zero, on the models in memory."""
        engine = DiffusersEngine(self.models, plan.job.spec)
        self.counts = engine.counts
        return engine


def in_process(
    setting: Setting, plain: PlainDiffusers, darkroom: Darkroom, rows: Sequence[Row], folder: Path
) -> dict[str, Run]:
    """The contenders by name; `folder` is for their files."""
    output = folder / "out"
    plan = setting.plan(write_rows(folder / "rows.parquet", rows), output)
    return {
        R0: lambda: plain.one_by_one(rows),
        R0B: lambda: plain.grouped(rows, setting.batch_rows),
        R1: darkroom.in_memory(plan),
        DARKROOM: darkroom.worker(plan, output),
    }


def _opened(plan: Plan) -> Iterator[OpenedRow]:
    reader = ShardReader(plan.job, Stores())
    for shard in plan.shards():
        for row in reader.read(shard, Spool()):
            if row.problem:
                raise row.problem
            images = open_images(
                row,
                None,  # type: ignore[arg-type]  # Pictures are in the rows.
                max_pixels=plan.job.spec.input.max_pixels,
                vae_factor=plan.job.models[row.routed.model].vae_factor,
            )
            yield OpenedRow(row=row, images=images)
    reader.close()
