"""Pipelines on components that are in memory, and schedulers for their calls."""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers

from actors.ldm3d import LDM3DImageProcessor
from actors.ldm3d_upscale import StableDiffusionUpscaleLDM3DPipeline
from schemas.errors import RowError
from schemas.schedulers import parse_options
from schemas.systems import System

OWN_PIPELINES: dict[str, Any] = {"StableDiffusionUpscaleLDM3DPipeline": StableDiffusionUpscaleLDM3DPipeline}


def pipeline_class(name: str) -> Any:
    """diffusers' class, or darkroom's own where diffusers has none."""
    return OWN_PIPELINES.get(name) or getattr(diffusers, name)


def build_pipeline(system: System, base: Any) -> Any:
    """The system's pipeline on the components of a loaded one."""
    cls = pipeline_class(system.pipeline)
    pipeline = cls(**_arguments(cls, base))
    if system.gives_depth and hasattr(pipeline, "image_processor"):
        pipeline.image_processor = LDM3DImageProcessor()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _arguments(cls: Any, base: Any) -> dict[str, Any]:
    """What `cls` takes of a base pipeline: its components and the switches of its configuration, but no
    safety checker (actors/safety.py says why).

    Not `cls.from_pipe(base)`: without a dtype that casts the shared weights to float32 in place
    (diffusers 0.42.1).
    """
    parameters = inspect.signature(cls).parameters
    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    available: Mapping[str, Any] = {**base.config, **base.components, **unchecked}
    return {name: available[name] for name in parameters if name in available}


def new_scheduler(published: Any, name: str | None, options: str | None) -> Any:
    """A scheduler that has not run: the published one, changed as the row says.

    That takes up to a third of a second (KDPM2's class computes a thousand steps when it is made), a copy
    of it 0.3 ms.
    """
    changes = parse_options(options) if options else {}
    name = name or type(published).__name__
    if name == type(published).__name__ and not changes:
        return published
    try:
        return getattr(diffusers, name).from_config(published.config, **changes)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, ImportError) as error:
        raise RowError("invalid_scheduler", f"{name} with {options or 'no options'}: {error}") from error
