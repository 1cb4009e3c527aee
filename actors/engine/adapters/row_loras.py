"""LoRA layers of which each row of a batch uses its own LoRAs.

peft 0.21.2 has `adapter_names` for this: one LoRA a row, and a call of the layer for each LoRA of a batch.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Conv2d, Linear
from torch.nn.functional import conv2d

Loras = tuple[tuple[str, float], ...]
"""The LoRAs of a row: the name under which peft has each, and its weight."""

BATCHES_KEPT = 8
"""The most batches whose factors are kept: a row stays with the same others for most of its steps."""
KEPT_BYTES = 256 << 20
"""The most bytes of them. Factors that are not kept are joined again for each batch."""


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

    def factors(self, layer: Any, room_bytes: int) -> _Factors | None:
        """The factors of a layer; None if it has none of these LoRAs.

        They are kept if they take at most `room_bytes`.
        """
        if id(layer) in self._factors:
            return self._factors[id(layer)]
        factors = self._joined(layer)
        size_bytes = sum(tensor.nbytes for tensor in factors[:2]) if factors else 0
        if size_bytes <= room_bytes:
            self._factors[id(layer)] = factors
            self.size_bytes += size_bytes
        return factors

    def _joined(self, layer: Any) -> _Factors | None:
        """The factors of a layer. Groups of a lower rank than others are filled up with zeros."""
        groups = [[(name, weight) for name, weight in row if name in layer.lora_A] for row in self._groups]
        ranks = [sum(layer.r[name] for name, _ in group) for group in groups]
        rank = max(ranks)
        if not rank:
            return None
        any_name = next(name for group in groups for name, _ in group)
        down, up = layer.lora_A[any_name].weight, layer.lora_B[any_name].weight.flatten(1)
        no_down, no_up = down.new_zeros(rank, *down.shape[1:]), up.new_zeros(up.shape[0], rank)
        downs, ups = [], []
        for group, own_rank in zip(groups, ranks, strict=True):
            downs += [*(layer.lora_A[name].weight for name, _ in group), no_down[own_rank:]]
            ups += [*(layer.lora_B[name].weight.flatten(1) for name, _ in group), no_up[:, own_rank:]]
        return _Factors(
            torch.cat(downs).reshape(len(groups), rank, *down.shape[1:]),
            torch.cat(ups, dim=1).reshape(-1, len(groups), rank).transpose(0, 1),
            self._scales_of(layer, groups, rank, down),
        )

    def _scales_of(
        self, layer: Any, groups: Sequence[Sequence[tuple[str, float]]], rank: int, like: torch.Tensor
    ) -> torch.Tensor:
        """The scale of each rank of each group; nearly all layers of a module have the same."""
        scales = tuple(
            tuple((layer.r[name], weight * initial_scale(layer, name)) for name, weight in group)
            for group in groups
        )
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
        self._recent: OrderedDict[tuple[Loras, ...], _Batch] = OrderedDict()

    def begin(self, loras: tuple[Loras, ...]) -> None:
        self.batch = self._recent.setdefault(loras, _Batch(loras))
        self._recent.move_to_end(loras)
        while len(self._recent) > BATCHES_KEPT:
            self._recent.popitem(last=False)

    def factors(self, layer: Any) -> _Factors | None:
        assert self.batch is not None, "no batch is running"
        kept_bytes = sum(batch.size_bytes for batch in self._recent.values())
        return self.batch.factors(layer, KEPT_BYTES - kept_bytes)

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


def forget_factors() -> None:
    """Free what is kept of earlier batches: it belongs to LoRAs and layers that may be dropped now."""
    _running.forget()


def initial_scale(layer: Any, name: str) -> float:
    """The scale of a LoRA of weight 1 in this layer, as peft 0.21.2 sets it (`LoraLayer.set_scale`)."""
    rank = float(layer.r[name])
    scale: float = layer.lora_alpha[name] / (rank**0.5 if layer.use_rslora.get(name) else rank)
    return scale


class RowLinear(Linear):
    """peft's layer for `torch.nn.Linear`. Outside of `rows_have` it is the same."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if _running.batch is None:
            return super().forward(x, *args, **kwargs)
        base: torch.Tensor = self.base_layer(x)
        factors = _running.factors(self)
        if factors is None:
            return base
        down, up, scales = factors
        hidden = torch.bmm(x.to(down.dtype).reshape(len(down), -1, x.shape[-1]), down.mT) * scales
        added = torch.bmm(hidden, up.mT)
        return base + added.reshape(base.shape).to(base.dtype)


class RowConv2d(Conv2d):
    """peft's layer for `torch.nn.Conv2d`. Outside of `rows_have` it is the same."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if _running.batch is None:
            return super().forward(x, *args, **kwargs)
        base: torch.Tensor = self.base_layer(x)
        factors = _running.factors(self)
        if factors is None:
            return base
        down, up, scales = factors
        hidden = _convolved(self.base_layer, x.to(down.dtype), down) * scales[..., None]
        added = up[:, None] @ hidden
        return base + added.reshape(base.shape).to(base.dtype)


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


ROW_LAYERS: dict[type, type] = {Linear: RowLinear, Conv2d: RowConv2d}
"""By class of peft's layers, the class of layers that also know rows."""


def is_plain_lora(layer: Any, name: str) -> bool:
    """Whether a layer has nothing of this LoRA but two matrices or kernels; True if it has nothing of it."""
    if name not in getattr(layer, "lora_A", ()):
        return True
    return type(layer) in ROW_LAYERS.values() and name not in layer.lora_variant and not layer.lora_bias[name]
