"""Whole jobs in this process, without Ray: what tests of rows, pictures and parts run."""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.engine import Engine
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from actors.storage.output import Output, open_output
from actors.storage.stores import Stores
from actors.worker import Worker
from jobs.planning.plan import Plan, make_plan
from jobs.planning.survey import survey
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.job import ShardReport
from schemas.spec.job_spec import JobSpec

DEVICE = torch.device("cpu")
ROUTES = {task: {"model": "sd", "num_inference_steps": 2} for task in ("text2img", "img2img", "inpaint")}

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a job came to."""

    plan: Plan
    reports: list[ShardReport]
    parts: list[bytes]
    """In the order of their names."""
    rows: list[Record]
    """All parts' rows."""

    def row(self, row_id: object, image_index: int = 0) -> Record:
        """The output row of one input row."""
        return next(row for row in self.rows if (row["row_id"], row["image_index"]) == (row_id, image_index))


def write_rows(path: Path, rows: Sequence[Record], types: Mapping[str, pa.DataType] | None = None) -> Path:
    """A Parquet file of these rows; pictures are HF image structs."""
    names = dict.fromkeys(name for row in rows for name in row)
    known = {"image": IMAGE_TYPE, "mask_image": IMAGE_TYPE} | dict(types or {})
    columns = {name: pa.array([row.get(name) for row in rows], known.get(name)) for name in names}
    pq.write_table(pa.table(columns), path)
    return path


def job_spec(path: Path, folder: Path, **changes: Any) -> JobSpec:
    """A spec over one random-weight checkpoint into `folder`; `changes` replace whole sections."""
    spec: Record = {
        "version": 1,
        "name": "test",
        "input": {"path": str(path)},
        "models": {"sd": {"checkpoint": "demo:sd"}},
        "routes": ROUTES,
        "default_route": "text2img",
        "output": {"path": str(folder)},
    }
    return JobSpec.model_validate(spec | changes)


def plan_for(spec: JobSpec) -> Plan:
    """The plan, without a word about mistakes in rows."""
    return make_plan(survey(spec))[0]


def model_cache(spec: JobSpec, capacity_bytes: int = 10**9) -> ModelCache:
    """The models of a spec, on the CPU."""
    options = LoadOptions(device=DEVICE, with_checker=spec.safety.checker == "on")
    return ModelCache(spec.models, options, capacity_bytes)


def worker_for(
    plan: Plan, engine: Engine | None = None, *, num_threads: int = 2, output: Output | None = None
) -> Worker:
    """A worker on this machine's CPU."""
    spec = plan.job.spec
    return Worker(
        plan.job,
        engine=engine or DiffusersEngine(model_cache(spec), spec),
        stores=Stores(),
        output=output or open_output(spec.output.path),
        num_threads=num_threads,
    )


def make(spec: JobSpec, engine: Engine | None = None, *, num_threads: int = 2) -> Made:
    """Plan a job and make all of it."""
    plan = plan_for(spec)
    with worker_for(plan, engine, num_threads=num_threads) as worker:
        reports = [worker.run(shard) for shard in plan.shards()]
    return read_output(plan, reports)


def read_output(plan: Plan, reports: list[ShardReport]) -> Made:
    """What lies in the output's `data/` now."""
    files = sorted((Path(plan.job.spec.output.path) / "data").iterdir())
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return Made(plan=plan, reports=reports, parts=[file.read_bytes() for file in files], rows=rows)


def pixels(row: Record) -> Image.Image:
    """The picture of an output row."""
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def picture(
    size: tuple[int, int] = (64, 64), colour: str = "teal", mode: str = "RGB", image_format: str = "PNG"
) -> Record:
    """A drawn picture as an HF image struct."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.paste(colour, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    return encoded(image.convert(mode), image_format)


def mask(size: tuple[int, int] = (64, 64)) -> Record:
    """A mask whose right half is to be painted."""
    image = Image.new("L", size, 0)
    image.paste(255, (size[0] // 2, 0, size[0], size[1]))
    return encoded(image)


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> Record:
    """A picture as an HF image struct."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return {"bytes": file.getvalue(), "path": None}


@contextmanager
def said_by_diffusers() -> Iterator[list[str]]:
    """What it logs."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("diffusers").addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger("diffusers").removeHandler(handler)


def outcomes(made: Made) -> list[str]:
    """Of each row its code, or its status."""
    return [row["error_code"] or row["status"] for row in made.rows]
