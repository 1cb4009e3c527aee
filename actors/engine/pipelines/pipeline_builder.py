"""Pipelines on components that are in memory, and schedulers for their calls."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import diffusers
import torch

from actors.engine.quirks.ldm3d import LDM3DImageProcessor
from schemas.errors import RowError
from schemas.systems.schedulers import parse_options
from schemas.systems.system_table import System, module_of


def pipeline_class(name: str) -> Any:
    """diffusers' class, or darkroom's own where diffusers has none."""
    return getattr(import_module(module_of(name)), name)


def build_pipeline(system: System, base: Any) -> Any:
    """The system's pipeline on the components of a loaded one."""
    cls = pipeline_class(system.pipeline)
    pipeline = _on(base.device, cls, base.components)(**_arguments(cls, base))
    if system.gives_depth and hasattr(pipeline, "image_processor"):
        pipeline.image_processor = LDM3DImageProcessor()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _on(device: torch.device, cls: Any, components: Mapping[str, Any]) -> Any:
    """The pipeline class, knowing its device, that its VAE is in float32 where it has to be, and that prompts
    are read as they are.

    diffusers 0.42.1 walks through every module's hooks each time a pipeline asks itself where it is: for a
    small model that costs as much as all of a call's scheduler steps. And it tokenizes each prompt once more
    to look for learned tokens of several vectors.
    """
    known = {"_execution_device": device, "device": device, "upcast_vae": _nothing}
    if not any(map(_has_long_tokens, components.values())):
        known["maybe_convert_prompt"] = _as_it_is
    return type(cls.__name__, (cls,), known)


def _has_long_tokens(component: Any) -> bool:
    """Whether it is a tokenizer with tokens that stand for several, as textual inversion learns them: for
    `<cat>` there are `<cat>_1`, `<cat>_2` ..."""
    added = getattr(component, "added_tokens_encoder", {})
    return any(f"{token}_1" in added for token in added)


def _as_it_is(_: Any, prompt: Any, tokenizer: Any) -> Any:
    """For `maybe_convert_prompt`."""
    return prompt


def _nothing(_: Any) -> None:
    """Replaces `upcast_vae`: float32_vae.py has done it, and diffusers 0.42.1 warns of its own method."""


def _arguments(cls: Any, base: Any) -> dict[str, Any]:
    """What `cls` takes of a base pipeline: its components and the switches of its configuration, but no
    safety checker (actors/engine/pipelines/safety_checker.py says why).

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
