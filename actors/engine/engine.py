"""The line between the worker and what makes pictures, so that either can be tested without the other."""

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
    """What became of one sample."""

    sample: Sample
    pixels: Pixels | None
    """None where there is a problem, where a safety checker withheld the picture, or where latents go on."""
    latents: Any = None
    """A tensor (channels, height, width) for the next step."""
    depth: Depth | None = None
    """Where the system gives one."""
    nsfw: bool | None
    """The safety checker's word; None where the checkpoint has none."""
    problem: RowError | None = None


class Engine(Protocol):
    """Makes pictures; the worker knows no more of it than this."""

    @property
    def num_loads(self) -> int:
        """Checkpoints loaded so far."""

    @property
    def models_loaded(self) -> tuple[str, ...]:
        """Names of the models in memory."""

    @property
    def num_batches(self) -> int:
        """Module calls so far, or another number that moves while a picture is in the making."""

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Every sample of the rows, in an order that follows from the rows alone.

        Called from one thread; pictures are decoded on `decoders`.
        """
