"""Copies to a GPU that nobody waits for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def transfers_in_background(device: torch.device) -> Iterator[None]:
    """Meanwhile `tensor.to(device)` returns at once for a tensor in the host's memory.

    diffusers 0.42.1 brings noise (once, and at every step of a stochastic scheduler), tokens and pictures to
    the device by a plain `to`, which waits until the device has done all that it was given before. Of tokens
    and other whole numbers `on_host` then knows what they were copied from. On a CPU nothing changes.
    """
    if device.type == "cpu":
        yield
        return
    plain = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.device.type != "cpu" or _device_of(args, kwargs) != device.type:
            return plain(self, *args, **kwargs)
        # Only from pinned memory does a copy run beside the device's work; its allocator keeps it till then.
        source = self.pin_memory() if device.type == "cuda" else self
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
    """Its values in the host's memory, without waiting where they come from there."""
    source: torch.Tensor | None = getattr(tensor, "on_host", None)
    return tensor.cpu() if source is None else source


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The kind of device that `tensor.to` is asked for; None where it is asked for a dtype alone."""
    for wanted in (*args, kwargs.get("device"), kwargs.get("other")):
        if isinstance(wanted, torch.Tensor):
            return wanted.device.type
        if isinstance(wanted, (str, torch.device)):
            return torch.device(wanted).type
        if isinstance(wanted, int) and not isinstance(wanted, bool):
            return "cuda"
    return None
