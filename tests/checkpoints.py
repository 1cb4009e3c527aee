"""Checkpoints for tests: built once on a machine, then found in the cache by every test process."""

from functools import cache
from pathlib import Path

from actors.demo_cache import demo_checkpoint


@cache
def sd_checkpoint() -> Path:
    """A small Stable Diffusion 1.5."""
    return demo_checkpoint("sd")


@cache
def sdxl_checkpoint() -> Path:
    """A small Stable Diffusion XL base."""
    return demo_checkpoint("sdxl")
