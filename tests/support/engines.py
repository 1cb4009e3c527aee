"""Engines for tests of what surrounds one: they need no torch, so that their workers are up at once.

A job names one by module and function, as it names the engine that runs diffusers.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
from rich.console import Console

from actors.engine.engine import Generated
from actors.engine.samples import Sample
from actors.images.input_images import EncodedImage
from actors.rows.opened_rows import OpenedRow
from jobs.__main__ import exit_codes
from jobs.dispatch.budget import judge
from jobs.reports.run_result import print_result
from jobs.run import run_job
from schemas.errors import RowError
from schemas.job import Job
from schemas.spec.spec_file import load_spec

FATAL_WIDTH = 13
"""Pixels of a picture whose decoding ends the process."""
ENDLESS_PROMPT = "is never done"


def decode(image: EncodedImage) -> None:
    """As a faulty codec may do it."""
    if image.width == FATAL_WIDTH:
        os._exit(1)
    image.decode()


class NoiseEngine:
    """Each picture is noise of its seed, and takes as long as it is told."""

    num_loads = 1
    models_loaded = ("sd",)
    num_batches = 0

    def __init__(self, seconds_per_image: float, hurry: Path | None = None) -> None:
        """`hurry`: once this file is there, no picture takes time."""
        self._seconds_per_image = seconds_per_image
        self._hurry = hurry

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Row after row."""
        for opened in rows:
            for image in opened.images.values():
                decoders.submit(decode, image).result()
            if opened.row.texts["prompt"] == ENDLESS_PROMPT:
                Event().wait()
            if self._hurry is None or not self._hurry.exists():
                time.sleep(self._seconds_per_image)
            sample = Sample(opened=opened, image_index=0)
            pixels = np.random.default_rng(sample.seed).integers(0, 256, (64, 64, 3), np.uint8)
            yield Generated(sample=sample, pixels=pixels, nsfw=None)


class GreyEngine:
    """Decodes what it is given, and makes grey pictures."""

    num_loads = 0
    num_batches = 0
    models_loaded: tuple[str, ...] = ()

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Row after row."""
        for opened in rows:
            sample = Sample(opened=opened, image_index=0)
            try:
                modes = [image.decode().mode for image in opened.images.values()]
            except RowError as problem:
                yield Generated(sample=sample, pixels=None, nsfw=None, problem=problem)
                continue
            assert set(modes) <= {"RGB", "L", "I;16"}
            yield Generated(sample=sample, pixels=np.full((8, 8, 3), 128, np.uint8), nsfw=None)


class NaNEngine(NoiseEngine):
    """No picture of it is one."""

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Row after row."""
        for generated in super().generate(rows, decoders):
            problem = RowError("nonfinite_image", "nothing but NaN")
            yield replace(generated, pixels=None, problem=problem)


def quick(job: Job, num_cpus: int) -> NoiseEngine:
    """For a job that is to end soon."""
    return NoiseEngine(0.01)


def slow(job: Job, num_cpus: int) -> NoiseEngine:
    """For a job that is to be met in its middle."""
    return NoiseEngine(0.1)


def hopeless(job: Job, num_cpus: int) -> NaNEngine:
    """Makes nothing, one row after the other."""
    return NaNEngine(0.04)


def slow_until_told(job: Job, num_cpus: int) -> NoiseEngine:
    """For a job whose middle lasts until a test has seen what it wants to see, and calls `hurry`."""
    return NoiseEngine(0.25, hurry=_hurry(Path(job.spec.input.path)))


def hurry(rows: Path) -> None:
    """Let the job with this input end."""
    _hurry(rows).touch()


def _hurry(rows: Path) -> Path:
    return rows.with_suffix(".hurry")


def leisurely(job: Job, num_cpus: int) -> NoiseEngine:
    """For a shard that is to be met in its middle."""
    return NoiseEngine(1.0)


def stuck_once(job: Job, num_cpus: int) -> NoiseEngine:
    """Loads for ever in the first process of a job whose input is a local file."""
    try:
        Path(job.spec.input.path).with_suffix(".stuck").touch(exist_ok=False)
    except FileExistsError:
        return quick(job, num_cpus)
    Event().wait()
    raise AssertionError("not reached")


def without_gpu(job: Job, num_cpus: int) -> NoiseEngine:
    """Cannot start."""
    raise RuntimeError("no CUDA device here")


def main(engine: str, spec_path: str) -> None:
    """`python -m tests.support.engines ENGINE SPEC`: what `darkroom run SPEC` does, with another engine."""
    spec, console = load_spec(Path(spec_path)), Console(width=140)
    result = run_job(spec, console, engine=f"tests.support.engines:{engine}")
    print_result(result, console)
    judge(spec.errors, result.totals, result.abandoned)


if __name__ == "__main__":
    with exit_codes():
        main(*sys.argv[1:])
