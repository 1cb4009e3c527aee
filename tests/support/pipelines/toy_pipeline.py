"""A diffusion model and its pipeline in a few lines, for tests of the batcher."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from actors.engine.batching.batch_policy import Stage
from actors.engine.batching.batcher import Batcher, Outcome
from actors.engine.batching.merged_modules import MergePoint

CHANNELS = 3

Log = list[tuple[str, tuple[int, ...]]]
"""The runs of the modules: the module's name and the shape of its first argument."""


class ToyModule(torch.nn.Module):
    """A module that logs each of its runs."""

    def __init__(self, name: str, log: Log) -> None:
        super().__init__()
        self.name = name
        self.log = log
        self.before: Callable[[torch.Tensor], None] = lambda rows: None
        """Called with each batch before the module runs; it may raise."""
        weights = torch.linspace(-1, 1, CHANNELS * CHANNELS).reshape(CHANNELS, CHANNELS)
        self.mix = torch.nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.mix.weight = torch.nn.Parameter(weights)

    def log_run(self, rows: torch.Tensor) -> None:
        """Add a run with these rows to the log."""
        self.log.append((self.name, tuple(rows.shape)))
        self.before(rows)


class TextEncoder(ToyModule):
    """A module from tokens [rows, length] to states [rows, 1, channels]."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        self.log_run(input_ids)
        mask = 1 if attention_mask is None else attention_mask
        summed = (input_ids * mask).float().mean(1).sin()
        return self.mix(summed[:, None, None].repeat(1, 1, CHANNELS))


class Denoiser(ToyModule):
    """A module from samples [rows, pixels, channels] to noise; as in diffusers, rows may share a timestep."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        states: torch.Tensor,
        strength: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> tuple[torch.Tensor]:
        self.log_run(sample)
        times = torch.as_tensor(timestep).float().reshape(-1).expand(len(sample))
        noise = self.mix(sample + states) * torch.cos(times)[:, None, None]
        return (noise * scale * (1 if strength is None else strength),)


class Decoder(ToyModule):
    """A module from samples to images."""

    def forward(self, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        self.log_run(sample)
        return {"sample": torch.tanh(self.mix(sample))}


class ToyModel:
    """The modules that calls share, and the log of their runs."""

    def __init__(self) -> None:
        self.log: Log = []
        self.text_encoder = TextEncoder("text_encoder", self.log)
        self.denoiser = Denoiser("denoiser", self.log)
        self.decoder = Decoder("decoder", self.log)

    def merge_points(self) -> list[MergePoint]:
        """The merge points of the modules, as a real model has them."""
        numbers = frozenset({"timestep"})
        return [
            MergePoint(name="text_encoder", module=self.text_encoder, stage=Stage.ENCODE, caches_rows=True),
            MergePoint(name="denoiser", module=self.denoiser, stage=Stage.DENOISE, numbers=numbers),
            MergePoint(name="decoder", module=self.decoder, stage=Stage.DECODE),
        ]

    def batches(self, name: str) -> list[int]:
        """The number of rows in each run of the module with this name."""
        return [shape[0] for module, shape in self.log if module == name]


def do_nothing() -> None:
    """Do nothing between the steps of a call."""


@dataclass(frozen=True, kw_only=True)
class PlainCall:
    """A plain call of the pipeline: it generates an image for each text, which is a number."""

    model: ToyModel
    texts: tuple[int, ...] = (1,)
    steps: int = 4
    guidance: bool = False
    pixels: int = 4
    timesteps: torch.dtype = torch.int64
    options: Sequence[tuple[str, Any]] = ()
    """Further arguments of the denoiser."""
    by_name: bool = False
    """Whether the denoiser gets keyword arguments."""
    in_between: Callable[[], None] = do_nothing
    """Called at each step, in the call's own code."""

    def __call__(self) -> torch.Tensor:
        ids = torch.tensor(self.texts)[:, None].repeat(1, 5)
        states = self.model.text_encoder(ids)
        if self.guidance:
            states = torch.cat([self.model.text_encoder(torch.zeros_like(ids)), states])
        sample = torch.linspace(0, 1, self.pixels * CHANNELS).reshape(1, self.pixels, CHANNELS)
        sample = sample + torch.tensor(self.texts)[:, None, None] / 7
        for timestep in torch.linspace(900, 1, self.steps).to(self.timesteps):
            self.in_between()
            sample = sample - self._noise(sample, timestep, states) / self.steps
        return self.model.decoder(sample)["sample"]

    def _noise(self, sample: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        if self.guidance:
            unconditional, conditional = self._denoised(torch.cat([sample] * 2), timestep, states).chunk(2)
            return unconditional + 3 * (conditional - unconditional)
        return self._denoised(sample, timestep, states)

    def _denoised(self, sample: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        options = dict(self.options)
        if self.by_name:
            return self.model.denoiser(states=states, timestep=timestep, sample=sample, **options)[0]
        return self.model.denoiser(sample, timestep, states, **options)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyCall:
    """A call of any function, in the form in which the batcher takes calls."""

    make: Callable[[], Any]
    rows: int = 1

    def __call__(self) -> Any:
        return self.make()


def call(make: Callable[[], Any], rows: int = 1) -> ToyCall:
    """A toy call of the function, which counts as this many rows."""
    return ToyCall(make=make, rows=rows)


def plain_calls(*calls: PlainCall) -> list[ToyCall]:
    """The plain calls in the form in which the batcher takes them."""
    return [call(plain, rows=len(plain.texts)) for plain in calls]


def batcher_of(model: ToyModel, max_rows: int = 16, ladder: Sequence[int] = ()) -> Batcher[ToyCall]:
    """A batcher for the model."""
    return Batcher(model.merge_points(), max_rows, ladder)


@contextmanager
def running(batcher: Batcher[ToyCall], calls: Sequence[ToyCall]) -> Iterator[Iterator[Outcome[ToyCall]]]:
    """Run the calls, and yield an iterator over their outcomes; the batcher ends with the block."""
    queue = iter(calls)
    with torch.inference_mode():
        outcomes = batcher.run(lambda: next(queue, None))
        try:
            yield outcomes
        finally:
            outcomes.close()  # type: ignore[attr-defined]  # a generator


def run(batcher: Batcher[ToyCall], calls: Sequence[ToyCall]) -> list[Any]:
    """The value or the error of each call, in the order of `calls`."""
    with running(batcher, calls) as outcomes:
        ended = {id(outcome.call): outcome for outcome in outcomes}
    assert len(ended) == len(calls)
    return [ended[id(toy)].value if ended[id(toy)].error is None else ended[id(toy)].error for toy in calls]


def alone(calls: Sequence[ToyCall]) -> list[Any]:
    """The values of the calls without a batcher."""
    with torch.inference_mode():
        return [toy.make() for toy in calls]


def assert_same(values: Sequence[Any], expected: Sequence[Any]) -> None:
    """Check that the values are equal, except for the last bits, which other rows of a batch may change."""
    torch.testing.assert_close(values, expected)
