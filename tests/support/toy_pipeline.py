"""A diffusion model and its pipeline in a few lines, for tests of what runs calls side by side."""

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
"""Each run of a module: its name and the shape of the first thing it was given."""


class ToyModule(torch.nn.Module):
    """Writes down what it is asked for, and what it meets there."""

    def __init__(self, name: str, log: Log) -> None:
        super().__init__()
        self.name = name
        self.log = log
        self.before: Callable[[torch.Tensor], None] = lambda rows: None
        """Sees each batch first, and may raise."""
        weights = torch.linspace(-1, 1, CHANNELS * CHANNELS).reshape(CHANNELS, CHANNELS)
        self.mix = torch.nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.mix.weight = torch.nn.Parameter(weights)

    def write_down(self, rows: torch.Tensor) -> None:
        self.log.append((self.name, tuple(rows.shape)))
        self.before(rows)


class TextEncoder(ToyModule):
    """Tokens [rows, length] to states [rows, 1, channels]."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        self.write_down(input_ids)
        mask = 1 if attention_mask is None else attention_mask
        summed = (input_ids * mask).float().mean(1).sin()
        return self.mix(summed[:, None, None].repeat(1, 1, CHANNELS))


class Denoiser(ToyModule):
    """Samples [rows, pixels, channels] to noise; as in diffusers, all rows may share one timestep."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        states: torch.Tensor,
        strength: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> tuple[torch.Tensor]:
        self.write_down(sample)
        times = torch.as_tensor(timestep).float().reshape(-1).expand(len(sample))
        noise = self.mix(sample + states) * torch.cos(times)[:, None, None]
        return (noise * scale * (1 if strength is None else strength),)


class Decoder(ToyModule):
    """Samples to pictures."""

    def forward(self, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        self.write_down(sample)
        return {"sample": torch.tanh(self.mix(sample))}


class ToyModel:
    """What calls share."""

    def __init__(self) -> None:
        self.log: Log = []
        self.text_encoder = TextEncoder("text_encoder", self.log)
        self.denoiser = Denoiser("denoiser", self.log)
        self.decoder = Decoder("decoder", self.log)

    def entries(self) -> list[MergePoint]:
        """Its modules as a model's are."""
        numbers = frozenset({"timestep"})
        return [
            MergePoint(name="text_encoder", module=self.text_encoder, stage=Stage.ENCODE, caches_rows=True),
            MergePoint(name="denoiser", module=self.denoiser, stage=Stage.DENOISE, numbers=numbers),
            MergePoint(name="decoder", module=self.decoder, stage=Stage.DECODE),
        ]

    def batches(self, name: str) -> list[int]:
        """Rows in each run of a module."""
        return [shape[0] for module, shape in self.log if module == name]


def nothing() -> None:
    """What a call does besides, when it does nothing."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plain call: pictures for texts, of which each is a number."""

    model: ToyModel
    texts: tuple[int, ...] = (1,)
    steps: int = 4
    guidance: bool = False
    pixels: int = 4
    timesteps: torch.dtype = torch.int64
    options: Sequence[tuple[str, Any]] = ()
    """Further arguments of the denoiser."""
    by_name: bool = False
    """Whether the denoiser gets its arguments by their names."""
    in_between: Callable[[], None] = nothing
    """Runs at each step in the call's own code."""

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
            without, with_text = self._denoised(torch.cat([sample] * 2), timestep, states).chunk(2)
            return without + 3 * (with_text - without)
        return self._denoised(sample, timestep, states)

    def _denoised(self, sample: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        options = dict(self.options)
        if self.by_name:
            return self.model.denoiser(states=states, timestep=timestep, sample=sample, **options)[0]
        return self.model.denoiser(sample, timestep, states, **options)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyCall:
    """Anything as a call."""

    make: Callable[[], Any]
    rows: int = 1

    def __call__(self) -> Any:
        return self.make()


def call(make: Callable[[], Any], rows: int = 1) -> ToyCall:
    """Anything as a call."""
    return ToyCall(make=make, rows=rows)


def pictures(*made: Picture) -> list[ToyCall]:
    """Plain calls as they are queued."""
    return [call(each, rows=len(each.texts)) for each in made]


def batcher_of(model: ToyModel, max_rows: int = 16, ladder: Sequence[int] = ()) -> Batcher[ToyCall]:
    """A batcher for a model."""
    return Batcher(model.entries(), max_rows, ladder)


@contextmanager
def running(batcher: Batcher[ToyCall], calls: Sequence[ToyCall]) -> Iterator[Iterator[Outcome[ToyCall]]]:
    """The outcomes of calls, one by one."""
    queue = iter(calls)
    with torch.inference_mode():
        outcomes = batcher.run(lambda: next(queue, None))
        try:
            yield outcomes
        finally:
            outcomes.close()  # type: ignore[attr-defined]  # a generator


def run(batcher: Batcher[ToyCall], calls: Sequence[ToyCall]) -> list[Any]:
    """What became of each call, in the order of `calls`: its value or its error."""
    with running(batcher, calls) as outcomes:
        ended = {id(outcome.call): outcome for outcome in outcomes}
    assert len(ended) == len(calls)
    return [
        ended[id(each)].value if ended[id(each)].error is None else ended[id(each)].error for each in calls
    ]


def alone(calls: Sequence[ToyCall]) -> list[Any]:
    """The values without a batcher."""
    with torch.inference_mode():
        return [each.make() for each in calls]


def assert_same(made: Sequence[Any], expected: Sequence[Any]) -> None:
    """Up to what a row's company in a batch does to its last bits."""
    torch.testing.assert_close(made, expected)
