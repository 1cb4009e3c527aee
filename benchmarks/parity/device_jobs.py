"""Small jobs on a device, in this process and without Ray."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from actors.engine.batching.merged_modules import CallCount
from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from actors.storage.output import open_output
from actors.storage.stores import Stores
from actors.worker import Worker
from benchmarks.parity.drawn_images import Record
from benchmarks.parity.plain_diffusers import MODELS, ROUTES
from jobs.planning.plan import Plan, make_plan
from jobs.survey.survey import make_survey
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.spec.job_spec import JobSpec, ModelSpec

IMAGE_COLUMNS = ("image", "mask_image", "depth_map")
CAPACITY_BYTES = 10**10
"""The limit for weights in memory: so high that no small model is evicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What a job generated."""

    rows: dict[str, Record]
    """The output rows by the names of the input rows."""
    counts: dict[str, CallCount]
    """The counts of module calls, by the kind of module."""


def planned(rows: Sequence[Record], folder: Path, dtype: str, **batching: Any) -> Plan:
    """The plan of a job over rows of every system, with all rows in one shard."""
    names = dict.fromkeys(name for values in rows for name in values)
    types = dict.fromkeys(IMAGE_COLUMNS, IMAGE_TYPE)
    columns = {name: pa.array([values.get(name) for values in rows], types.get(name)) for name in names}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "name": "gpu-check",
            "input": {"path": str(folder / "rows.parquet")},
            "models": {name: model | {"dtype": dtype} for name, model in MODELS.items()},
            "routes": ROUTES,
            "default_route": "text2img",
            "batching": batching,
            "output": {"path": str(folder / "out")},
        }
    )
    return make_plan(make_survey(spec))[0]


def empty_cache(device: str, dtype: str) -> ModelCache:
    """A cache for the models of several jobs, none of which is loaded yet."""
    specs = {name: ModelSpec.model_validate(model | {"dtype": dtype}) for name, model in MODELS.items()}
    return ModelCache(specs, LoadOptions(device=torch.device(device)), CAPACITY_BYTES)


def generated(
    rows: Sequence[Record], device: str, dtype: str, *, models: ModelCache | None = None, **batching: Any
) -> Generated:
    """What a worker on the device generates for the rows, with its own models or with these."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = planned(rows, folder, dtype, **batching)
        spec = plan.job.spec
        options = LoadOptions.of(spec, torch.device(device))
        engine = DiffusersEngine(models or ModelCache(spec.models, options, CAPACITY_BYTES), spec)
        output = open_output(spec.output.path)
        with Worker(plan.job, engine=engine, stores=Stores(), output=output, num_threads=4) as worker:
            for shard in plan.shards():
                worker.run(shard)
        parts = sorted((folder / "out" / "data").iterdir())
        output_rows = {row["row_id"]: row for part in parts for row in pq.read_table(part).to_pylist()}
        return Generated(rows=output_rows, counts=engine.counts)
