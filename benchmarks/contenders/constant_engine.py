"""An engine that gives every sample the same image at once, so that only darkroom's own work remains."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

import numpy as np

from actors.engine.cohorts import cut_into_cohorts, samples_of
from actors.engine.engine import Generated
from actors.rows.opened_rows import OpenedRow
from schemas.job import Job

SIDE = 64
"""Width and height of the image, in pixels."""
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
"""The image: noise, which compresses worst."""


class ConstantEngine:
    """An engine that divides rows into cohorts as the real one does, and generates nothing."""

    num_loads = 0
    heartbeats = 0
    phase = ""
    num_steps = 0
    models_loaded: tuple[str, ...] = ()

    def __init__(self, max_batch_rows: int) -> None:
        self._max_batch_rows = max_batch_rows

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield the constant image for every sample."""
        for cohort in cut_into_cohorts(samples_of(rows), self._max_batch_rows):
            for sample in cohort.samples:
                yield Generated(sample=sample, pixels=PIXELS, nsfw=None)


def make_engine(job: Job, num_cpus: int) -> ConstantEngine:
    """The engine of a job; the worker's process calls this function by its name."""
    return ConstantEngine(job.spec.batching.max_batch_rows)
