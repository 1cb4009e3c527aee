"""Contenders that take turns, so that whatever else the machine does meets all of them alike."""

import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from statistics import median

Contender = Callable[[], float]
"""Goes through all rows once; pictures a second."""


def timed(run: Callable[[], int], num_rows: int) -> Contender:
    """A run that counts its pictures, on the clock."""

    def go() -> float:
        begun = time.perf_counter()
        made = run()
        assert made == num_rows, f"{made} of {num_rows} rows were made"
        return made / (time.perf_counter() - begun)

    return go


def race(contenders: Mapping[str, Contender], rounds: int) -> dict[str, float]:
    """The median of each one's rates; a round before them is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            rates[name].append(contender())
    return {name: median(measured[1:]) for name, measured in rates.items()}


def surroundings() -> str:
    """The machine and the versions, as one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "ray"))
    return f"{platform.machine()}, Python {sys.version.split()[0]}, {versions}"
