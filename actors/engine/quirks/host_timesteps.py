"""Keeps a scheduler's timesteps in the host's memory."""

from functools import wraps
from typing import Any


def keep_on_host(scheduler: Any) -> None:
    """Keep the scheduler's timesteps on the host, whatever device the pipeline asks for.

    diffusers 0.42.1 looks timesteps up in tables on the host at each step (DDIM, DDPM, PNDM). If they are on
    a GPU, each look-up waits for it. Numbers on the host are passed to its kernels without waiting.
    """
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def on_host(*args: Any, device: Any = None, **kwargs: Any) -> None:
        set_timesteps(*args, device="cpu", **kwargs)

    scheduler.set_timesteps = on_host
