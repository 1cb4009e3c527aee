"""Whole jobs in this process, without Ray, for tests of rows, images and parts."""

import io
import logging
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console

from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.engine import Engine
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from actors.storage.output import Output, open_output
from actors.storage.stores import Stores
from actors.worker import Worker
from benchmarks.parity.drawn_images import drawn_image as drawn_image
from benchmarks.parity.drawn_images import encoded as encoded
from benchmarks.parity.drawn_images import image_of as image_of
from benchmarks.parity.drawn_images import mask as mask
from benchmarks.parity.plain_diffusers import MODELS
from benchmarks.parity.plain_diffusers import ROUTES as ALL_ROUTES
from jobs.planning.plan import Plan, make_plan
from jobs.survey.survey import make_survey
from jobs.verification.verify import verify_output
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.job import Job, ShardReport
from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import AdapterFile, ControlNetCard, EmbeddingFile, IpAdapterCard
from tests.support import running

DEVICE = torch.device("cpu")
ROUTES = {task: {"model": "sd", "num_inference_steps": 2} for task in ("text2img", "img2img", "inpaint")}

Record = running.Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A job's plan and its results."""

    plan: Plan
    reports: list[ShardReport]
    parts: list[bytes]
    """The content of the part files, in the order of their names."""
    rows: list[Record]
    """The rows of all parts."""

    def row(self, row_id: object, image_index: int = 0) -> Record:
        """The output row of an input row's image."""
        return next(row for row in self.rows if (row["row_id"], row["image_index"]) == (row_id, image_index))


def opened(image: Record) -> Image.Image:
    """The image in a struct of bytes and path."""
    return Image.open(io.BytesIO(image["bytes"]))


def levels(made: Made, expected: Mapping[str, npt.NDArray[np.int32]]) -> dict[str, int]:
    """How far each row's image is from the expected pixels, in levels of 255. Every row must have one."""
    assert [row["error_message"] for row in made.rows if row["status"] != "ok"] == []
    return {
        name: int(np.abs(np.asarray(opened(made.row(name)["image"]), np.int32) - values).max())
        for name, values in expected.items()
    }


def write_rows(path: Path, rows: Sequence[Record], types: Mapping[str, pa.DataType] | None = None) -> Path:
    """Write the rows to a Parquet file whose images are HF image structs, and return its path."""
    return running.write_rows(path, rows, {"image": IMAGE_TYPE, "mask_image": IMAGE_TYPE} | dict(types or {}))


def job_spec(path: Path, folder: Path, **changes: Any) -> JobSpec:
    """A spec with one random-weight checkpoint and the output `folder`; `changes` replace whole sections."""
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
    """The plan of a job, without the findings about bad rows."""
    return make_plan(make_survey(spec))[0]


def model_cache(
    spec: JobSpec,
    capacity_bytes: int = 10**9,
    loras: Mapping[str, Mapping[str, AdapterFile]] | None = None,
    controlnets: Mapping[str, Mapping[str, ControlNetCard]] | None = None,
    ip_adapters: Mapping[str, Mapping[str, IpAdapterCard]] | None = None,
    embeddings: Mapping[str, Mapping[str, EmbeddingFile]] | None = None,
) -> ModelCache:
    """A cache of the spec's models, on the CPU."""
    options = LoadOptions.of(spec, DEVICE, embeddings)
    return ModelCache(spec.models, options, capacity_bytes, loras, controlnets, ip_adapters)


def models_of(job: Job) -> ModelCache:
    """A cache of the job's models with all of their adapters, on the CPU."""
    return model_cache(
        job.spec,
        loras=job.loras,
        controlnets=job.controlnets,
        ip_adapters=job.ip_adapters,
        embeddings=job.embeddings,
    )


@cache
def loaded_models() -> ModelCache:
    """A cache for MODELS, which the jobs of this process share: to load them takes as long as a job."""
    return model_cache(job_spec(Path("rows"), Path("out"), models=MODELS, routes=ALL_ROUTES))


def worker_for(
    plan: Plan, engine: Engine | None = None, *, num_threads: int = 2, output: Output | None = None
) -> Worker:
    """A worker in this process, on the CPU."""
    job = plan.job
    spec = job.spec
    return Worker(
        job,
        engine=engine or DiffusersEngine(models_of(job), spec),
        stores=Stores(),
        output=output or open_output(spec.output.path),
        num_threads=num_threads,
    )


def make(spec: JobSpec, engine: Engine | None = None, *, num_threads: int = 2) -> Made:
    """Plan a job, run all its shards, and return its results."""
    plan = plan_for(spec)
    with worker_for(plan, engine, num_threads=num_threads) as worker:
        reports = [worker.run(shard) for shard in plan.shards()]
    return read_output(plan, reports)


def read_output(plan: Plan, reports: list[ShardReport]) -> Made:
    """The job's results, read from the parts in its output."""
    files = sorted((Path(plan.job.spec.output.path) / "data").iterdir())
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return Made(plan=plan, reports=reports, parts=[file.read_bytes() for file in files], rows=rows)


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header has this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    line = bytes(1 + width)
    data = b"".join(packer.compress(line) for _ in range(min(height, 100))) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@contextmanager
def diffusers_messages() -> Iterator[list[str]]:
    """The messages that diffusers logs within the block."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("diffusers").addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger("diffusers").removeHandler(handler)


def outcomes(made: Made) -> list[str]:
    """The outcome of each row in order: its error code, or its status if it has none."""
    return [row["error_code"] or row["status"] for row in made.rows]


def outcomes_by_id(made: Made) -> dict[str, str]:
    """The outcome of each row by its row_id."""
    return {row["row_id"]: row["error_code"] or row["status"] for row in made.rows}


def printed_by_verify(spec: JobSpec) -> str:
    """What verify prints about the job's output; DarkroomError if the output is not right."""
    printed = io.StringIO()
    verify_output(spec.output.path, Console(file=printed, width=200))
    return printed.getvalue()
