"""Keeps a scheduler's timesteps, and its arithmetic with noise levels, in the host's memory."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler

from actors.engine.quirks.unipc import UPDATES


def keep_on_host(scheduler: Any) -> None:
    """Keep the scheduler's timesteps and noise levels on the host, whatever device the pipeline asks for.

    diffusers 0.42.1 looks timesteps up in tables on the host at each step (DDIM, DDPM, PNDM). If they are on
    a GPU, each look-up waits for it. Numbers on the host are passed to its kernels without waiting.
    """
    # Functions of the scheduler's own would refer back to it: it would keep the tensors of its call for long.
    cls: Any = type(scheduler)
    scheduler.__class__ = _on_host(cls)


@cache
def _on_host(cls: Any) -> Any:
    """The subclass of a scheduler's class whose numbers stay on the host."""
    members = {"__module__": cls.__module__, "set_timesteps": _without_device(cls.set_timesteps)}
    if hasattr(cls, "add_noise"):
        members["add_noise"] = _with_numbers(cls.add_noise)
    if issubclass(cls, UniPCMultistepScheduler):
        members |= UPDATES
    return type(cls.__name__, (cls,), members)


def _without_device(set_timesteps: Callable[..., None]) -> Callable[..., None]:
    @wraps(set_timesteps)
    def on_host(self: Any, *args: Any, device: Any = None, **kwargs: Any) -> None:
        set_timesteps(self, *args, device="cpu", **kwargs)

    return on_host


def _with_numbers(add_noise: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """An `add_noise` that gives the device two numbers, with results that are equal to the bit.

    diffusers 0.42.1 copies its whole table of noise levels to the device, and then indexes it by a list, for
    which the host waits; DDIM's class and its like even keep the table there, so that each later step
    computes its numbers on the device. Inpainting with 4 channels adds noise at every step.
    """

    @wraps(add_noise)
    def with_numbers(
        self: Any, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        first = timesteps[:1]
        if not torch.equal(timesteps, first.expand_as(timesteps)):
            return add_noise(self, original_samples, noise, timesteps)
        # A noisy sample is one number times the sample and another one times the noise.
        kept, added = add_noise(self, *_units(original_samples.dtype), first).tolist()
        noisy: torch.Tensor = (original_samples if kept == 1 else original_samples * kept) + noise * added
        return noisy

    return with_numbers


@cache
def _units(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([1, 0], dtype=dtype), torch.tensor([0, 1], dtype=dtype)
