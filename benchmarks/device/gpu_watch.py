"""What a run does to the device: how long it works, and how often the host waits for it."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.device.limits import synchronize

DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
"""Kinds of the profiler's events (torch 2.13) that stand for time on a GPU."""
ON_CPU = ("cpu_op",)
"""For trying this out without a GPU."""
SYNCHRONISES = "called a synchronizing CUDA operation"
"""torch's words, under `set_sync_debug_mode`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Of one run."""

    busy: float
    """Share of the time in which the device did something; 0 where the profiler saw nothing: it may lack the
    rights, and on a CPU it sees one thread only."""
    waits: Counter[str]
    """By the line of code from which the host waited."""
    num_images: int

    @property
    def waits_per_image(self) -> float:
        """How often the host waited for the device."""
        return self.waits.total() / self.num_images

    def most_waited_at(self) -> str:
        """The line, with its share of all waits."""
        if not self.waits:
            return "nowhere"
        place, number = self.waits.most_common(1)[0]
        return f"{place} ({number} of {self.waits.total()})"


def watch(run: Callable[[], int], device: torch.device) -> Watched:
    """Run it twice: once for its time, once with the profiler, which makes the host slower but no kernel."""
    synchronize(device)
    begun = time.perf_counter()
    run()
    synchronize(device)
    seconds = time.perf_counter() - begun
    kinds = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    with profile(activities=kinds) as profiler:
        with counted_waits(device) as waits:
            num_images = run()
        synchronize(device)
    busy = _busy_seconds(profiler, device) / seconds
    return Watched(busy=busy, waits=waits, num_images=num_images)


def _busy_seconds(profiler: Any, device: torch.device) -> float:
    """The length of the union of all events: kernels on several streams may run side by side."""
    wanted = DEVICE_WORK if device.type == "cuda" else ON_CPU
    # The raw events: `profiler.events()` makes a tree of them first, which is slow for a million.
    events = profiler.profiler.kineto_results.events()
    spans = sorted((each.start_ns(), each.end_ns()) for each in events if each.activity_type() in wanted)
    busy, until = 0, 0
    for start, end in spans:
        busy += max(0, end - max(start, until))
        until = max(until, end)
    return busy / 1e9


@contextmanager
def counted_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Implicit synchronisations that torch knows of, as they happen in whichever thread."""
    waits: Counter[str] = Counter()
    if device.type != "cuda":
        yield waits
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits.update(
                f"{Path(each.filename).name}:{each.lineno}"
                for each in caught
                if SYNCHRONISES in str(each.message)
            )
