"""darkroom's engine with a note of when its pictures came."""

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
    """When a shard's pictures left the engine, by the wall clock, in seconds."""

    first: float
    last: float
    num_images: int


class TimedEngine:
    """The real one, but that it writes down when each shard was made."""

    def __init__(self, engine: diffusers_engine.DiffusersEngine, notes: Path) -> None:
        self._engine = engine
        self._notes = notes

    def __getattr__(self, name: str) -> Any:
        """Whatever else an engine has is the real one's."""
        return getattr(self._engine, name)

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """What the real one gives; one line of notes for all of it."""
        times = []
        for generated in self._engine.generate(rows, decoders):
            times.append(time.time())
            yield generated
        arrivals = Arrivals(first=times[0], last=times[-1], num_images=len(times))
        with self._notes.open("a") as notes:
            notes.write(json.dumps(asdict(arrivals)) + "\n")


def notes_beside(output: str) -> Path:
    """Where a job with this output has its notes."""
    return Path(f"{output}.arrivals")


def arrivals(output: str) -> list[Arrivals]:
    """Shard by shard, of a job with one worker."""
    return [Arrivals(**json.loads(line)) for line in notes_beside(output).read_text().splitlines()]


def make_engine(job: Job, num_cpus: int) -> TimedEngine:
    """Called by name in the worker's process."""
    engine = diffusers_engine.make_engine(job, num_cpus)
    return TimedEngine(engine, notes_beside(job.spec.output.path))
