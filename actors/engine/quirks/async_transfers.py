"""Copies to a GPU run beside its other work, and nothing waits for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def transfers_in_background(target: torch.device) -> Iterator[None]:
    """While the block runs, `tensor.to(device)` returns at once for a tensor in the host's memory.

    So does `torch.tensor(values, device=device)`, by which diffusers 0.42.1 and compel 2.5.1 move noise
    levels, sizes and weights.

    diffusers 0.42.1 moves noise (once, and at every step of a stochastic scheduler), tokens and images to the
    device by a plain `to`, which waits until the device has done all work that it was given before. A copy of
    tokens or other whole numbers remembers its source, for `on_host`. On a CPU nothing changes.
    """
    if target.type == "cpu":
        yield
        return
    plain, plain_tensor = torch.Tensor.to, torch.tensor

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.device.type != "cpu" or _device_of(args, kwargs) != target.type:
            return plain(self, *args, **kwargs)
        # torch 2.13 converts a tensor on the host first, into memory that is not pinned.
        dtype = _dtype_of(args, kwargs)
        source = self if dtype in (None, self.dtype) else plain(self, dtype)
        # Only from pinned memory does a copy run beside the device's work. Its allocator keeps it
        # until the copy has ended.
        source = _pinnable(source).pin_memory() if target.type == "cuda" else source
        # `torch.nn.Module.to` passes `non_blocking` by its position.
        named = [value for value in args if not isinstance(value, bool)]
        moved = plain(source, *named, **{**kwargs, "non_blocking": True})
        if not self.is_floating_point():
            moved.on_host = self  # type: ignore[attr-defined]
        return moved

    def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != target.type:
            return plain_tensor(data, device=device, **kwargs)
        return plain_tensor(data, **kwargs).to(device)

    torch.Tensor.to = to  # type: ignore[method-assign,assignment]
    torch.tensor = tensor  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.Tensor.to = plain  # type: ignore[method-assign]
        torch.tensor = plain_tensor


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


def _dtype_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The dtype in the arguments of `tensor.to`; None if they name only a device."""
    for target in (*args, kwargs.get("dtype"), kwargs.get("other")):
        if isinstance(target, torch.Tensor):
            return target.dtype
        if isinstance(target, torch.dtype):
            return target
    return None
