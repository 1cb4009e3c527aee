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
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from actors.images.spool import Spool
from actors.rows.opened_rows import OpenedRow, open_row
from actors.rows.routing import size_limits
from actors.rows.shard_reader import ShardReader
from actors.storage.output import open_output
from actors.storage.stores import Stores
from actors.worker import Worker
from benchmarks.contenders.diffusers_loops import CLASSES, PlainDiffusers
from benchmarks.device.built_model import BuiltModel, BuiltModels
from benchmarks.workloads import Row, write_rows
from jobs.planning.plan import Plan, make_plan
from jobs.survey.survey import make_survey
from schemas.spec.job_spec import JobSpec, ModelSpec

R0, R0B, R1, DARKROOM = "R0 one by one", "R0b grouped", "R1 engine", "darkroom"
MODEL = "model"
"""The name of the only model."""
CAPACITY_BYTES = 10**12
"""The limit for weights in memory: so high that no model is evicted."""

Run = Callable[[], int]
"""Generates all rows once and returns the number of images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The settings that all contenders share."""

    checkpoint: Path
    family: str
    """`sd` or `sdxl`."""
    device: torch.device
    dtype: str
    num_threads: int
    """Threads that darkroom uses for decoding and encoding; torch's own threads are set for the process."""
    batch_rows: int
    """The value of `max_batch_rows`, and the largest batch of the loop that groups rows."""
    compiled: bool = False
    built: BuiltModel | None = None
    """The model in memory, if its weights are not in the checkpoint's files."""

    def plain(self) -> PlainDiffusers:
        """The loops of plain diffusers, with their own copy of the weights."""
        if self.built:
            text2img = self.built.copied()
        else:
            cls, dtype = CLASSES[self.family]["text2img"], getattr(torch, self.dtype)
            text2img = cls.from_pretrained(self.checkpoint, use_safetensors=True, dtype=dtype).to(self.device)
        return PlainDiffusers(text2img, self.family, compiled=self.compiled)

    def plan(self, path: Path, output: Path) -> Plan:
        """darkroom's plan for a file of rows, with all rows in one shard."""
        batching = {"max_batch_rows": self.batch_rows, "compile": self.compiled, "shard_rows": 100_000}
        spec = spec_for(path, output, self.checkpoint, self.dtype, batching=batching)
        return make_plan(make_survey(spec))[0]


def spec_for(path: Path, output: Path, checkpoint: Path, dtype: str, **sections: Any) -> JobSpec:
    """The spec of a darkroom job over a file of rows; `sections` replace or add sections of the spec."""
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
    """darkroom's engine, with the models that a worker keeps between shards."""

    def __init__(self, setting: Setting) -> None:
        spec = ModelSpec.model_validate({"checkpoint": str(setting.checkpoint), "dtype": setting.dtype})
        on_gpu = setting.device.type == "cuda"
        # As in make_engine of actors/engine/diffusers_engine.py, except that the caller chooses the device.
        options = LoadOptions(device=setting.device, channels_last=on_gpu)
        self.models: Any = (
            BuiltModels(MODEL, setting.built, spec, options)
            if setting.built
            else ModelCache({MODEL: spec}, options, CAPACITY_BYTES)
        )
        self.counts: dict[str, CallCount] = {}
        """The counts of module calls in the last run, by the kind of module."""
        self._setting = setting

    @property
    def weights_mb(self) -> float:
        """Megabytes of weights in memory."""
        return weight_bytes(self.models.get(MODEL).components) / 1e6

    def in_memory(self, plan: Plan) -> Run:
        """A run of the engine alone: from rows in memory to pixels in memory.

        The first run opens the rows.
        """
        rows: list[OpenedRow] = []

        def run() -> int:
            if not rows:
                rows.extend(opened_rows(plan))
            with ThreadPoolExecutor(self._setting.num_threads) as decoders:
                results = self._engine(plan).generate(rows, decoders)
                return sum(result.problem is None for result in results)

        return run

    def worker(self, plan: Plan, output: Path) -> Run:
        """A run of a whole worker: from a Parquet file to one part."""

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
        """A new engine on the models in memory, whose counts start at zero."""
        engine = DiffusersEngine(self.models, plan.job.spec)
        self.counts = engine.counts
        return engine


def in_process(
    setting: Setting, plain: PlainDiffusers, darkroom: Darkroom, rows: Sequence[Row], folder: Path
) -> dict[str, Run]:
    """The runs of the contenders in this process, by name; they put their files into `folder`."""
    output = folder / "out"
    plan = setting.plan(write_rows(folder / "rows.parquet", rows), output)
    return {
        R0: lambda: plain.one_by_one(rows),
        R0B: lambda: plain.grouped(rows, setting.batch_rows),
        R1: darkroom.in_memory(plan),
        DARKROOM: darkroom.worker(plan, output),
    }


def opened_rows(plan: Plan) -> Iterator[OpenedRow]:
    reader = ShardReader(plan.job, Stores())
    for shard in plan.shards():
        for row in reader.read(shard, Spool()):
            if row.problem:
                raise row.problem
            yield open_row(
                row,
                None,  # type: ignore[arg-type]  # Images are in the rows.
                limits=size_limits(plan.job.spec),
                vae_factor=plan.job.models[row.route.model].vae_factor,
            )
    reader.close()
