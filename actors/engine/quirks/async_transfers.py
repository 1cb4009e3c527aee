"""Copies to a GPU run beside its other work, and nothing waits for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def transfers_in_background(device: torch.device) -> Iterator[None]:
    """While the block runs, `tensor.to(device)` returns at once for a tensor in the host's memory.

    diffusers 0.42.1 moves noise (once, and at every step of a stochastic scheduler), tokens and images to the
    device by a plain `to`, which waits until the device has done all work that it was given before. A copy of
    tokens or other whole numbers remembers its source, for `on_host`. On a CPU nothing changes.
    """
    if device.type == "cpu":
        yield
        return
    plain = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.device.type != "cpu" or _device_of(args, kwargs) != device.type:
            return plain(self, *args, **kwargs)
        # Only from pinned memory does a copy run beside the device's work. Its allocator keeps it
        # until the copy has ended.
        source = _pinnable(self).pin_memory() if device.type == "cuda" else self
        moved = plain(source, *args, **{**kwargs, "non_blocking": True})
        if not self.is_floating_point():
            moved.on_host = self  # type: ignore[attr-defined]
        return moved

    torch.Tensor.to = to  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.to = plain  # type: ignore[method-assign]


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the host's memory. A copy that `transfers_in_background` made is not waited for."""
    source: torch.Tensor | None = getattr(tensor, "on_host", None)
    return tensor.cpu() if source is None else source


def _pinnable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy if it was expanded: torch 2.13 refuses to pin memory with its strides."""
    return tensor.contiguous() if 0 in tensor.stride() else tensor


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The device type in the arguments of `tensor.to`; None if they name only a dtype."""
    for target in (*args, kwargs.get("device"), kwargs.get("other")):
        if isinstance(target, torch.Tensor):
            return target.device.type
        if isinstance(target, (str, torch.device)):
            return torch.device(target).type
        if isinstance(target, int) and not isinstance(target, bool):
            return "cuda"
    return None
