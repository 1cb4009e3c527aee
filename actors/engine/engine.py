"""The interface between the worker and its engine, so that either can be tested without the other."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSeconds:
    """How long the device was at work for one model."""

    loading: float = 0.0
    """Until its first module ran: its weights and adapters were loaded, and its pipeline was put together."""
    steps: float = 0.0
    """Denoising, and all that does not belong to the other two."""
    images: float = 0.0
    """What each image needs once, however many steps it has: its texts encoded, its latents decoded."""

    def __add__(self, other: "ModelSeconds") -> "ModelSeconds":
        return ModelSeconds(
            loading=self.loading + other.loading,
            steps=self.steps + other.steps,
            images=self.images + other.images,
        )

    def since(self, earlier: "ModelSeconds") -> "ModelSeconds":
        """The seconds that came after an earlier time."""
        return ModelSeconds(
            loading=self.loading - earlier.loading,
            steps=self.steps - earlier.steps,
            images=self.images - earlier.images,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """The device of an engine, and what it has done so far."""

    name: str = ""
    """What its driver or the system calls it, such as `NVIDIA H200`."""
    num_cpus: int = 0
    """The threads that compute; 0: a GPU does."""
    peak_bytes: int = 0
    """The most memory of a GPU that tensors have taken; 0 without a GPU."""
    seconds: Mapping[str, ModelSeconds] = field(default_factory=dict)
    """By model, how long it was at work."""


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

    @property
    def use(self) -> DeviceUse:
        """The device, and what it has done so far. The thread that generates asks."""

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield the result of every sample of the rows, in an order that depends on the rows alone.

        It is called from one thread. Input images are decoded on `decoders`.
        """
