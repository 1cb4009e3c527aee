"""Engines without torch, whose workers start at once, for tests of everything around an engine.

A job names one of them by module and function, as it names the engine that runs diffusers.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.engine.engine import DeviceUse, Generated
from actors.engine.samples import Sample
from actors.images.input_images import EncodedImage
from actors.rows.opened_rows import OpenedRow
from schemas.errors import DeviceError, RowError
from schemas.job import Job

FATAL_WIDTH = 13
"""Width in pixels of an image whose decoding ends the process."""


def decode(image: EncodedImage) -> None:
    """Decode the image; end the process if it has the fatal width, as a faulty codec may do."""
    if image.width == FATAL_WIDTH:
        os._exit(1)
    image.decode()


class NoiseEngine:
    """An engine that generates noise from each row's seed; an image takes `seconds_per_image`."""

    num_loads = 1
    models_loaded = ("sd",)
    heartbeats = 0
    phase = ""
    num_steps = 0
    use = DeviceUse()

    def __init__(self, seconds_per_image: float, hurry: Path | None = None) -> None:
        """`hurry`: once this file exists, images take no time."""
        self._seconds_per_image = seconds_per_image
        self._hurry = hurry

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield one image for each row, in order."""
        for opened in rows:
            for image in opened.images.values():
                decoders.submit(decode, image).result()
            self._take_time()
            sample = Sample(opened=opened, image_index=0)
            pixels = np.random.default_rng(sample.seed).integers(0, 256, (16, 16, 3), np.uint8)
            yield Generated(sample=sample, pixels=pixels, nsfw=None)

    def _take_time(self) -> None:
        if self._hurry is None:
            time.sleep(self._seconds_per_image)
            return
        done = time.monotonic() + self._seconds_per_image
        while time.monotonic() < done and not self._hurry.exists():
            time.sleep(0.05)


class GreyEngine:
    """An engine that decodes the input images and generates grey images."""

    num_loads = 0
    heartbeats = 0
    phase = ""
    num_steps = 0
    use = DeviceUse()
    models_loaded: tuple[str, ...] = ()

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield one image or problem for each row, in order."""
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
    """An engine whose rows all fail, because their images are NaN."""

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield a problem for each row, in order."""
        for generated in super().generate(rows, decoders):
            problem = RowError("nonfinite_image", "all values are NaN")
            yield replace(generated, pixels=None, problem=problem)


def quick(job: Job, num_cpus: int) -> NoiseEngine:
    """The engine of a job that should end soon."""
    return NoiseEngine(0.01)


def slow(job: Job, num_cpus: int) -> NoiseEngine:
    """The engine of a job that a test wants to see at work."""
    return NoiseEngine(0.1)


def hopeless(job: Job, num_cpus: int) -> NaNEngine:
    """The engine of a job whose rows all fail, one after the other."""
    return NaNEngine(0.04)


def slow_until_told(job: Job, num_cpus: int) -> NoiseEngine:
    """The engine of a job that works slowly until the test calls `hurry`."""
    return NoiseEngine(1.0, hurry=_hurry(Path(job.spec.input.path)))


def hurry(rows: Path) -> None:
    """Let the job with this input file end soon."""
    _hurry(rows).touch()


def _hurry(rows: Path) -> Path:
    return rows.with_suffix(".hurry")


class BrokenEngine(NoiseEngine):
    """An engine on a machine whose device is broken: with its first row it dies, or raises an error."""

    def __init__(self, *, dies: bool) -> None:
        super().__init__(0.1)
        self._dies = dies

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield nothing."""
        if self._dies:
            os._exit(1)
        raise DeviceError("CUDA error: unspecified launch failure")


BROKEN = "DARKROOM_TEST_BROKEN"
"""The environment variable that names a Ray node's file, in which is said how its workers fail."""


def slow_unless_broken(job: Job, num_cpus: int) -> NoiseEngine:
    """The engine of a job one of whose machines is broken; the others work until the test calls `hurry`."""
    if BROKEN not in os.environ:
        return slow_until_told(job, num_cpus)
    return BrokenEngine(dies=Path(os.environ[BROKEN]).read_text() == "dies")


def main(engine: str, spec_path: str) -> None:
    """Do what `darkroom run SPEC` does with another engine: `python -m tests.support.engines ENGINE SPEC`."""
    # Workers import this module too, and need nothing of the driver's.
    from rich.console import Console

    from jobs.commands.command_line import exit_codes
    from jobs.fleet.budget import judge
    from jobs.reports.run_result import print_result
    from jobs.run import run_job
    from schemas.spec.spec_file import load_spec

    with exit_codes():
        spec, console = load_spec(Path(spec_path)), Console(width=140)
        result = run_job(spec, console, engine=f"tests.support.engines:{engine}")
        print_result(result, console, "job.yaml")
        judge(spec.errors, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
