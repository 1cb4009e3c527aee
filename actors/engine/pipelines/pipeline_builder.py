"""Builds pipelines on components that are in memory, and schedulers for their calls."""

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import diffusers

from actors.engine.quirks.ldm3d import LDM3DImageProcessor
from actors.engine.quirks.pipeline_overrides import with_overrides
from schemas.errors import RowError
from schemas.systems.schedulers import parse_options
from schemas.systems.system_table import System, module_of


def pipeline_class(name: str) -> Any:
    """The pipeline's class: diffusers' own, or darkroom's if diffusers has none."""
    return getattr(import_module(module_of(name)), name)


def build_pipeline(system: System, base: Any, nets: Sequence[Any] = ()) -> Any:
    """The system's pipeline on the components of `base`, the checkpoint's own pipeline.

    `nets`: the ControlNets of the pipeline, if it has such.
    """
    name = system.control_pipeline if nets else system.pipeline
    cls = pipeline_class(system.union_pipeline if nets and is_union(nets[0]) else name)
    with_nets = {"controlnet": nets[0] if len(nets) == 1 else [*nets]} if nets else {}
    pipeline = with_overrides(cls, base.device)(**_arguments(cls, base), **with_nets)
    if system.gives_depth and hasattr(pipeline, "image_processor"):
        pipeline.image_processor = LDM3DImageProcessor()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def is_union(net: Any) -> bool:
    """Whether the ControlNet is a union, to which several images can be given."""
    return isinstance(net, diffusers.ControlNetUnionModel)


def _arguments(cls: Any, base: Any) -> dict[str, Any]:
    """The arguments of `cls` for the components of `base` and the switches of its configuration.

    There is no safety checker among them; safety_checker.py says why. `cls.from_pipe(base)` is not used:
    without a dtype, it casts the shared weights to float32 in place (diffusers 0.42.1).
    """
    parameters = inspect.signature(cls).parameters
    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    available: Mapping[str, Any] = {**base.config, **base.components, **unchecked}
    return {name: available[name] for name in parameters if name in available}


def new_scheduler(published: Any, name: str | None, options: str | None) -> Any:
    """A scheduler that has not run: the published one, or another class or options if the row sets them.

    Building one takes up to a third of a second (KDPM2's class computes a thousand steps when it is built);
    copying one takes 0.3 ms. RowError if diffusers does not accept the options.
    """
    changes = parse_options(options) if options else {}
    name = name or type(published).__name__
    if name == type(published).__name__ and not changes:
        return published
    try:
        return getattr(diffusers, name).from_config(published.config, **changes)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, ImportError) as error:
        raise RowError("invalid_scheduler", f"{name} with {options or 'no options'}: {error}") from error
