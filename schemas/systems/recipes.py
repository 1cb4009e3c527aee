"""Recipes: how models that were distilled for a few steps want to be called, as their model cards say."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.systems.schedulers import options_text

_TRAILING = options_text({"timestep_spacing": "trailing"})

RECIPES: Mapping[str, Mapping[str, int | float | str]] = {
    # latent-consistency/lcm-lora-sdv1-5 and -sdxl: 2 to 8 steps, no guidance or a scale from 1 to 2.
    "lcm": {"scheduler": "LCMScheduler", "num_inference_steps": 4, "guidance_scale": 1.0},
    # stabilityai/sd-turbo and sdxl-turbo: 1 to 4 steps, no guidance.
    "turbo": {
        "scheduler": "EulerAncestralDiscreteScheduler",
        "scheduler_options": _TRAILING,
        "num_inference_steps": 1,
        "guidance_scale": 0.0,
    },
    # ByteDance/SDXL-Lightning: as many steps as the file's name says, no guidance.
    "lightning": {
        "scheduler": "EulerDiscreteScheduler",
        "scheduler_options": _TRAILING,
        "num_inference_steps": 4,
        "guidance_scale": 0.0,
    },
    # ByteDance/Hyper-SD: as many steps as the file's name says, no guidance.
    "hyper": {
        "scheduler": "DDIMScheduler",
        "scheduler_options": _TRAILING,
        "num_inference_steps": 4,
        "guidance_scale": 0.0,
        "eta": 0.0,
    },
}
"""The values of each recipe, by parameter."""

MAX_STEPS = 12
"""The most steps of a call that still is one for a few-step model. The cards name 1 to 8."""
MAX_GUIDANCE = 2.0
"""The greatest guidance scale of such a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _FewSteps:
    sign: re.Pattern[str]
    """What the names of such models contain."""
    schedulers: frozenset[str]
    """The schedulers with which they work."""


def _kind(word: str, *schedulers: str) -> _FewSteps:
    sign = re.compile(rf"(?<![a-z]){word}(?![a-z])", re.IGNORECASE)
    return _FewSteps(sign=sign, schedulers=frozenset(f"{name}Scheduler" for name in schedulers))


_EULER = ("EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverSinglestep", "DPMSolverMultistep")
_KINDS: Mapping[str, _FewSteps] = {
    "lcm": _kind("lcm", "LCM", "TCD"),
    "turbo": _kind("turbo", *_EULER, "LCM"),
    "lightning": _kind("lightning", *_EULER, "LCM"),
    "hyper": _kind("hyper(?:[-_ ]?sd(?:xl|15)?)?", "DDIM", "TCD", *_EULER, "LCM"),
}


def recipe_of(name: str) -> str | None:
    """The recipe that a file or repository of this name wants; None if its name says nothing of few steps."""
    return next((recipe for recipe, kind in _KINDS.items() if kind.sign.search(name)), None)


def spoils(recipe: str, scheduler: str, num_steps: int, guidance_scale: float) -> bool:
    """Whether a model that wants this recipe makes mush of such a call, as far as is known."""
    return (
        scheduler not in _KINDS[recipe].schedulers or num_steps > MAX_STEPS or guidance_scale > MAX_GUIDANCE
    )
