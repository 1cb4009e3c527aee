"""Contenders that take turns, so that other load on the machine affects all of them alike."""

import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from statistics import median

Contender = Callable[[], float]
"""Generates all rows once and returns the rate in images per second."""


def timed(run: Callable[[], int], num_rows: int) -> Contender:
    """The contender that times `run`, which returns its number of images."""

    def rate() -> float:
        begun = time.perf_counter()
        num_images = run()
        assert num_images == num_rows, f"{num_images} of {num_rows} rows were generated"
        return num_images / (time.perf_counter() - begun)

    return rate


def median_rates(contenders: Mapping[str, Contender], rounds: int) -> dict[str, float]:
    """The median rate of each contender over the rounds; a warm-up round before them is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            rates[name].append(contender())
    return {name: median(measured[1:]) for name, measured in rates.items()}


def surroundings(*libraries: str) -> str:
    """The machine and the versions of Python and of the libraries with these names, as one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return f"{platform.machine()}, Python {sys.version.split()[0]}, {versions}"
