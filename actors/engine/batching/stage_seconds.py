"""How long the device has worked at the stages that run once for each image."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from actors.engine.batching.batch_policy import Stage

ONCE = frozenset({Stage.ENCODE, Stage.DECODE})
"""The stages that run once for each image, however many steps it has."""


class StageSeconds:
    """The seconds of the stages that run once for each image, and when the first module ran.

    What is left of a run is the denoiser's: so are its scheduler's seconds, and the host's between two steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._on_host = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        """Marks in the GPU's stream before and behind each batch."""
        self.first_at: float | None = None
        """When the first module ran, on Python's monotonic clock; None before."""

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Count the block if the stage runs once for each image."""
        begun = time.monotonic()
        self.first_at = self.first_at or begun
        if stage not in ONCE:
            yield
        elif self._on_gpu:
            # The host only hands the work over, so the device itself notes when it begins and ends.
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            yield
            last.record()
            self._marks.append((first, last))
        else:
            yield
            self._on_host += time.monotonic() - begun

    def total(self) -> float:
        """The seconds so far, as far as the device has come."""
        ended = [(first, last) for first, last in self._marks if last.query()]  # type: ignore[no-untyped-call]
        milliseconds: float = sum(first.elapsed_time(last) for first, last in ended)
        return self._on_host + milliseconds / 1000
