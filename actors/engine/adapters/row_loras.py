"""LoRA layers of which each row of a batch uses its own LoRAs.

peft 0.21.2 only brings the matrices here. Its own layers have `adapter_names` for batches of several LoRAs:
one a row, and a call for each LoRA. And the more LoRAs they have, the longer it takes to load another one.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from math import sqrt
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Conv2d, Linear
from torch.nn.functional import conv2d, linear

Loras = tuple[tuple[str, float], ...]
"""The LoRAs of a row: the name that each has in the layers, and its weight."""

BATCHES_KEPT = 8
"""The most batches whose factors are kept: a row stays with the same others for most of its steps."""
KEPT_BYTES = 256 << 20
"""The most bytes of them. Factors that are not kept are joined again for each batch."""


class Lora(NamedTuple):
    """What a LoRA has for one layer."""

    down: torch.Tensor
    """(rank, in): the matrix A, or the kernels (rank, in, height, width) of a convolution."""
    up: torch.Tensor
    """(out, rank): the matrix B, or kernels (out, rank, 1, 1)."""
    alpha: float
    divisor: float
    """The rank, or its root (rsLoRA)."""

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return len(self.down)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of both."""
        return self.down.dtype

    def scale(self, weight: float) -> float:
        """The factor of B A for this weight, computed as peft 0.21.2 does (`LoraLayer.set_scale`)."""
        return weight * self.alpha / self.divisor


class _Factors(NamedTuple):
    """A layer's LoRAs for a batch. The LoRAs of a group of rows are joined along the rank."""

    down: torch.Tensor
    """(groups, rank, ...): the matrices A, or the kernels of a convolution."""
    up: torch.Tensor
    """(groups, out, rank): the matrices B."""
    scales: torch.Tensor
    """(groups, 1, rank)"""


class _Batch:
    """The LoRAs of a batch, by group: all groups have the same number of rows, which are side by side."""

    def __init__(self, loras: Sequence[Loras]) -> None:
        runs = [(row, len([*rows])) for row, rows in groupby(loras)]
        alike = len({length for _, length in runs}) == 1
        self._groups = [row for row, _ in runs] if alike else loras
        self._scales: dict[object, torch.Tensor] = {}
        self._factors: dict[int, _Factors | None] = {}
        """By the layer's `id`."""
        self.size_bytes = 0
        """Of the factors that are kept."""

    def factors(self, layer: Any, room_bytes: Callable[[], int]) -> _Factors | None:
        """The factors of a layer; None if it has none of these LoRAs.

        They are kept if they take at most `room_bytes()`.
        """
        if id(layer) in self._factors:
            return self._factors[id(layer)]
        factors = self._joined(layer)
        size_bytes = sum(tensor.nbytes for tensor in factors[:2]) if factors else 0
        if size_bytes <= room_bytes():
            self._factors[id(layer)] = factors
            self.size_bytes += size_bytes
        return factors

    def _joined(self, layer: Any) -> _Factors | None:
        """The factors of a layer. Groups of a lower rank than others are filled up with zeros."""
        groups = [
            [(layer.loras[name], weight) for name, weight in row if name in layer.loras]
            for row in self._groups
        ]
        ranks = [sum(lora.rank for lora, _ in group) for group in groups]
        rank = max(ranks)
        if not rank:
            return None
        any_lora = next(lora for group in groups for lora, _ in group)
        down, up = any_lora.down, any_lora.up.flatten(1)
        no_down, no_up = down.new_zeros(rank, *down.shape[1:]), up.new_zeros(up.shape[0], rank)
        downs, ups = [], []
        for group, own_rank in zip(groups, ranks, strict=True):
            downs += [*(lora.down for lora, _ in group), no_down[own_rank:]]
            ups += [*(lora.up.flatten(1) for lora, _ in group), no_up[:, own_rank:]]
        scales = tuple(tuple((lora.rank, lora.scale(weight)) for lora, weight in group) for group in groups)
        return _Factors(
            torch.cat(downs).reshape(len(groups), rank, *down.shape[1:]),
            torch.cat(ups, dim=1).reshape(-1, len(groups), rank).transpose(0, 1),
            self._on_device(scales, rank, down),
        )

    def _on_device(
        self, scales: tuple[tuple[tuple[int, float], ...], ...], rank: int, like: torch.Tensor
    ) -> torch.Tensor:
        """The scale of each rank of each group; nearly all layers of a module have the same."""
        key = scales, rank, like.dtype
        if key not in self._scales:
            values = [[scale for own_rank, scale in group for _ in range(own_rank)] for group in scales]
            padded = [[[*group, *[0.0] * (rank - len(group))]] for group in values]
            # A blocking copy would wait for all work that the device has still to do.
            self._scales[key] = torch.tensor(padded, dtype=like.dtype).to(like.device, non_blocking=True)
        return self._scales[key]


class _Running:
    """The batch that a module is running, and the batches before it."""

    def __init__(self) -> None:
        self.batch: _Batch | None = None
        self.all_rows: Loras = ()
        """The LoRAs that all rows have, one after the other, as plain diffusers adds them."""
        self._recent: OrderedDict[tuple[Loras, ...], _Batch] = OrderedDict()

    def begin(self, loras: tuple[Loras, ...]) -> None:
        self.batch = self._recent.setdefault(loras, _Batch(loras))
        self._recent.move_to_end(loras)
        while len(self._recent) > BATCHES_KEPT:
            self._recent.popitem(last=False)

    def factors(self, layer: Any) -> _Factors | None:
        assert self.batch is not None, "no batch is running"
        return self.batch.factors(layer, self._room_bytes)

    def _room_bytes(self) -> int:
        return KEPT_BYTES - sum(batch.size_bytes for batch in self._recent.values())

    def forget(self) -> None:
        self._recent.clear()


_running = _Running()
"""There is one engine in a process, and it runs one module at a time."""


@contextmanager
def rows_have(loras: Sequence[Loras]) -> Iterator[None]:
    """While the block runs, row i of what a module with LoRA layers gets has the LoRAs `loras[i]`."""
    _running.begin((*loras,))
    try:
        yield
    finally:
        _running.batch = None


@contextmanager
def all_have(loras: Loras) -> Iterator[None]:
    """While the block runs, modules with LoRA layers have these LoRAs, with the bits of peft's own layers."""
    _running.all_rows = loras
    try:
        yield
    finally:
        _running.all_rows = ()


def forget_factors() -> None:
    """Free what is kept of earlier batches: it belongs to LoRAs and layers that may be dropped now."""
    _running.forget()


class RowLinear(Linear):
    """peft's layer for `torch.nn.Linear`, with the LoRAs of each row."""

    loras: dict[str, Lora]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if _running.batch is None:
            return _with_loras(
                self, result, lambda lora: linear(linear(x.to(lora.dtype), lora.down), lora.up)
            )
        factors = _running.factors(self)
        if factors is None:
            return result
        down, up, scales = factors
        hidden = torch.bmm(x.to(down.dtype).reshape(len(down), -1, x.shape[-1]), down.mT) * scales
        added = torch.bmm(hidden, up.mT)
        return result + added.reshape(result.shape).to(result.dtype)


class RowConv2d(Conv2d):
    """peft's layer for `torch.nn.Conv2d`, with the LoRAs of each row."""

    loras: dict[str, Lora]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base: Any = self.base_layer
        result: torch.Tensor = base(x, *args, **kwargs)
        if _running.batch is None:

            def added_by(lora: Lora) -> torch.Tensor:
                return conv2d(conv2d(x.to(lora.dtype), lora.down, None, base.stride, base.padding), lora.up)

            return _with_loras(self, result, added_by)
        factors = _running.factors(self)
        if factors is None:
            return result
        down, up, scales = factors
        hidden = _convolved(base, x.to(down.dtype), down) * scales[..., None]
        added = up[:, None] @ hidden
        return result + added.reshape(result.shape).to(result.dtype)


def _with_loras(layer: Any, result: torch.Tensor, added_by: Callable[[Lora], torch.Tensor]) -> torch.Tensor:
    """A layer's result with what the LoRAs of all rows add, one after the other as in peft 0.21.2."""
    dtype = result.dtype
    for name, weight in _running.all_rows:
        if name in layer.loras:
            lora: Lora = layer.loras[name]
            result = result + added_by(lora) * lora.scale(weight)
    return result.to(dtype)


def _convolved(layer: Any, x: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """(groups, rows of a group, rank, pixels): each row convolved with the kernels of its group."""
    groups, rank = down.shape[:2]
    grouped = x.reshape(groups, -1, *x.shape[1:])
    if max(*down.shape[3:], *layer.stride) == 1:
        return down.flatten(2)[:, None] @ grouped.flatten(3)
    # One convolution of all groups side by side.
    channels, kernels = grouped.transpose(0, 1).flatten(1, 2), down.flatten(0, 1)
    convolved = conv2d(channels, kernels, None, layer.stride, layer.padding, groups=groups)
    return convolved.reshape(len(channels), groups, rank, -1).transpose(0, 1)


_ROW_LAYERS: dict[type, type] = {Linear: RowLinear, Conv2d: RowConv2d}


def take_out(layer: Any, name: str) -> None:
    """Make peft's layer one that knows rows, and move the matrices of one of its LoRAs into `loras`.

    ValueError if the layer has more of it than two matrices or kernels, such as the magnitudes of a DoRA.
    """
    own = isinstance(layer, RowLinear | RowConv2d)
    if (not own and type(layer) not in _ROW_LAYERS) or name in layer.lora_variant or layer.lora_bias[name]:
        raise ValueError("it has more than two matrices a layer, and rows of one batch cannot differ in that")
    if not own:
        layer.__class__, layer.loras = _ROW_LAYERS[type(layer)], {}
    rank = layer.r[name]
    layer.loras[name] = Lora(
        # torch 2.13 multiplies by matrices that require gradients in another way, and those of peft do while
        # they are active: the last bits would differ.
        layer.lora_A[name].weight.requires_grad_(True),
        layer.lora_B[name].weight.requires_grad_(True),
        float(layer.lora_alpha[name]),
        sqrt(rank) if layer.use_rslora.get(name) else float(rank),
    )
