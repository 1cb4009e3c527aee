"""darkroom's engine, with a record of when its images left it."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.engine import diffusers_engine
from actors.engine.engine import Generated
from actors.rows.opened_rows import OpenedRow
from schemas.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """When a shard's first and last image left the engine: the wall clock, in seconds since the epoch."""

    first: float
    last: float
    num_images: int


class TimedEngine:
    """The real engine, which also records when the images of each shard left it."""

    def __init__(self, engine: diffusers_engine.DiffusersEngine, log_path: Path) -> None:
        self._engine = engine
        self._log_path = log_path

    def __getattr__(self, name: str) -> Any:
        """Every other attribute of an engine is the real engine's."""
        return getattr(self._engine, name)

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield the real engine's results, and write one line to the log after the last one."""
        times = []
        for generated in self._engine.generate(rows, decoders):
            times.append(time.time())
            yield generated
        arrivals = Arrivals(first=times[0], last=times[-1], num_images=len(times))
        with self._log_path.open("a") as log:
            log.write(json.dumps(asdict(arrivals)) + "\n")


def log_path_of(output: str) -> Path:
    """The path of the log of a job with this output: beside the output."""
    return Path(f"{output}.arrivals")


def arrivals(output: str) -> list[Arrivals]:
    """The arrivals of each shard of a job with one worker, in the order in which the shards ran."""
    return [Arrivals(**json.loads(line)) for line in log_path_of(output).read_text().splitlines()]


def make_engine(job: Job, num_cpus: int) -> TimedEngine:
    """The engine of a job; the worker's process calls this function by its name."""
    engine = diffusers_engine.make_engine(job, num_cpus)
    return TimedEngine(engine, log_path_of(job.spec.output.path))
