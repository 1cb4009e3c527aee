"""Keeps a scheduler's timesteps, and its arithmetic with noise levels, in the host's memory."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from actors.engine.quirks.host_steps import (
    SOLVER_UPDATES,
    UNIPC_UPDATES,
    as_a_sum,
    ddim_step,
    schedule_number,
    summed_lms_step,
    summed_pndm_update,
)

_READ_TABLES = (DDIMParallelScheduler, DDPMParallelScheduler, DDPMScheduler, PNDMScheduler)
"""Classes whose `step` uses its timestep for looking up in tables alone."""


_AlphaSigma = tuple[torch.Tensor, torch.Tensor]
_MAX_REMEMBERED = 100_000
"""How many noise levels a class remembers; a schedule has at most a thousand."""


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
    if issubclass(cls, _READ_TABLES):
        members["step"] = _with_plain_timestep(cls.step)
    if hasattr(cls, "_sigma_to_alpha_sigma_t"):
        members["_sigma_to_alpha_sigma_t"] = _remembered(cls._sigma_to_alpha_sigma_t)
    members |= {name: as_a_sum(getattr(cls, name)) for name in SOLVER_UPDATES if hasattr(cls, name)}
    if issubclass(cls, PNDMScheduler):
        members["_get_prev_sample"] = summed_pndm_update
    if issubclass(cls, LMSDiscreteScheduler):
        members["step"] = summed_lms_step
    if issubclass(cls, DDIMScheduler):
        members["step"] = ddim_step
    if issubclass(cls, UniPCMultistepScheduler):
        members |= UNIPC_UPDATES
    return type(cls.__name__, (cls,), members)


def _without_device(set_timesteps: Callable[..., None]) -> Callable[..., None]:
    @wraps(set_timesteps)
    def on_host(self: Any, *args: Any, device: Any = None, **kwargs: Any) -> None:
        set_timesteps(self, *args, device="cpu", **kwargs)
        self.schedule = schedule_number(self)

    return on_host


def _with_plain_timestep(step: Callable[..., Any]) -> Callable[..., Any]:
    """A `step` that gets its timestep as a plain number, with which look-ups are several times quicker."""

    @wraps(step)
    def with_number(self: Any, model_output: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        number = timestep.item() if isinstance(timestep, torch.Tensor) else timestep
        return step(self, model_output, number, *args, **kwargs)

    return with_number


def _remembered(convert: Callable[..., _AlphaSigma]) -> Callable[..., _AlphaSigma]:
    """A `_sigma_to_alpha_sigma_t` that remembers its results.

    The DPM-Solvers of diffusers 0.42.1 ask four times a step for what they have asked for in the step before.
    """
    results: dict[tuple[bool, float], _AlphaSigma] = {}

    @wraps(convert)
    def remembered(self: Any, sigma: torch.Tensor) -> _AlphaSigma:
        if sigma.ndim or sigma.dtype != torch.float32:
            return convert(self, sigma)
        key = bool(self.config.use_flow_sigmas), sigma.item()
        if key not in results:
            if len(results) >= _MAX_REMEMBERED:
                results.clear()
            results[key] = convert(self, sigma)
        return results[key]

    return remembered


def _with_numbers(add_noise: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """An `add_noise` that gives the device two numbers. Its results differ from diffusers' by rounding.

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
        return torch.add(original_samples if kept == 1 else original_samples * kept, noise, alpha=added)

    return with_numbers


@cache
def _units(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([1, 0], dtype=dtype), torch.tensor([0, 1], dtype=dtype)
