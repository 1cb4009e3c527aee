"""An engine that gives every sample the same picture at once: what is left is darkroom's own work."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

import numpy as np

from actors.engine.cohorts import cohorts, samples_of
from actors.engine.engine import Generated
from actors.rows.opened_rows import OpenedRow
from schemas.job import Job

SIDE = 64
"""Pixels."""
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
"""Noise: what compresses worst."""


class ConstantEngine:
    """Routes and cuts cohorts as the real one does, and generates nothing."""

    num_loads = 0
    num_batches = 0
    models_loaded: tuple[str, ...] = ()

    def __init__(self, max_batch_rows: int) -> None:
        self._max_batch_rows = max_batch_rows

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """The constant for every sample."""
        for cohort in cohorts(samples_of(rows), self._max_batch_rows):
            for sample in cohort.samples:
                yield Generated(sample=sample, pixels=PIXELS, nsfw=None)


def make_engine(job: Job, num_cpus: int) -> ConstantEngine:
    """Called by name in the worker's process."""
    return ConstantEngine(job.spec.batching.max_batch_rows)
