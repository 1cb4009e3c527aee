"""Timesteps stay in the host's memory."""

from functools import wraps
from typing import Any


def keep_on_host(scheduler: Any) -> None:
    """Let a scheduler's timesteps stay on the host, wherever its pipeline wants them.

    diffusers 0.42.1 looks timesteps up in tables on the host at each step (DDIM, DDPM, PNDM): from a GPU that
    has to be waited for. Numbers on the host go into its kernels as they are.
    """
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def on_host(*args: Any, device: Any = None, **kwargs: Any) -> None:
        set_timesteps(*args, device="cpu", **kwargs)

    scheduler.set_timesteps = on_host
