"""How a run uses the device: how long the device works, and how often the host waits for it."""

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
"""The kinds of profiler events (torch 2.13) that count as time on a GPU."""
ON_CPU = ("cpu_op",)
"""The kind of event that is counted when this runs without a GPU."""
SYNCHRONISES = "called a synchronizing CUDA operation"
"""The text of torch's warning under `set_sync_debug_mode`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """The measurements of one run."""

    busy: float
    """The share of the time in which the device worked.

    It is 0 if the profiler recorded nothing, for example because it lacks the permission. On a CPU the
    profiler records one thread only.
    """
    waits: Counter[str]
    """How often the host waited for the device, by the line of code that made it wait."""
    num_images: int

    @property
    def waits_per_image(self) -> float:
        """How often the host waited for the device, divided by the number of images."""
        return self.waits.total() / self.num_images

    def most_waited_at(self) -> str:
        """The line of code that caused most of the waits, with its count and the count of all waits."""
        if not self.waits:
            return "nowhere"
        line, number = self.waits.most_common(1)[0]
        return f"{line} ({number} of {self.waits.total()})"


def watch(run: Callable[[], int], seconds: float, device: torch.device) -> Watched:
    """The measurements of a run, which takes `seconds` without the profiler and is executed once with it.

    The profiler makes the host slower, but not the kernels.
    """
    kinds = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    with profile(activities=kinds) as profiler:
        with counted_waits(device) as waits:
            num_images = run()
        synchronize(device)
    busy = _busy_seconds(profiler, device) / seconds
    return Watched(busy=busy, waits=waits, num_images=num_images)


def _busy_seconds(profiler: Any, device: torch.device) -> float:
    """The time in which at least one event ran: kernels on several streams may overlap."""
    kinds = DEVICE_WORK if device.type == "cuda" else ON_CPU
    # The raw events: `profiler.events()` first builds a tree of them, which is slow for a million events.
    events = profiler.profiler.kineto_results.events()
    spans = sorted((event.start_ns(), event.end_ns()) for event in events if event.activity_type() in kinds)
    busy_ns, last_end = 0, 0
    for start, end in spans:
        busy_ns += max(0, end - max(start, last_end))
        last_end = max(last_end, end)
    return busy_ns / 1e9


@contextmanager
def counted_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count the implicit synchronisations that torch reports, in all threads, by the line of code.

    The counter is filled when the block ends.
    """
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
                f"{Path(warning.filename).name}:{warning.lineno}"
                for warning in caught
                if SYNCHRONISES in str(warning.message)
            )
