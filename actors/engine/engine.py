"""The interface between the worker and its engine, so that either can be tested without the other."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

from actors.engine.samples import Sample
from actors.images.encoding import Depth, Pixels
from actors.rows.opened_rows import OpenedRow
from schemas.errors import RowError


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The result of one step of one sample: an image, latents or a problem."""

    sample: Sample
    pixels: Pixels | None
    """None if the sample failed, if a flagged image is not stored, or if the step gave latents."""
    latents: Any = None
    """The latents for the next step, a tensor (channels, height, width); None where it takes an image."""
    depth: Depth | None = None
    """The depth map; None where the system gives none."""
    nsfw: bool | None
    """The safety checkers' verdict on the chain up to this step; None if no step had a checker."""
    problem: RowError | None = None
    """Why the sample failed; None if it did not."""


class Engine(Protocol):
    """Generates images. The worker uses nothing of an engine but these members."""

    @property
    def num_loads(self) -> int:
        """How many checkpoints have been loaded so far."""

    @property
    def models_loaded(self) -> tuple[str, ...]:
        """The names of the models in memory."""

    @property
    def heartbeats(self) -> int:
        """A number that grows while models are loaded and images are generated. Any thread may ask."""

    @property
    def phase(self) -> str:
        """What it is doing, such as `loading sd` or `denoising`; empty while idle. Any thread may ask."""

    @property
    def num_steps(self) -> int:
        """How many denoising steps of single images it has run so far. Any thread may ask."""

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield the result of every sample of the rows, in an order that depends on the rows alone.

        It is called from one thread. Input images are decoded on `decoders`.
        """
