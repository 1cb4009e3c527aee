"""The names by which other tools call their samplers, each read as a scheduler's class and its options.

The readings are those of diffusers' own table "A1111/k-diffusion to diffusers" on its page on schedulers, and
the further names those of ComfyUI, InvokeAI and the web APIs.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from schemas.systems.parameters import ParameterValue
from schemas.systems.schedulers import MISFITS, SCHEDULERS, Settings, options_text, parse_options, shown
from schemas.wording.nearest import did_you_mean

_MAX_NAME = 100
"""The longest text that is looked up, in characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A scheduler as a name stands for it."""

    scheduler: str
    """The scheduler's class."""
    options: Settings = field(default_factory=dict)
    """The options that the name implies."""

    def __str__(self) -> str:
        """`DPMSolverMultistepScheduler with use_karras_sigmas: true`."""
        options = ", ".join(f"{name}: {_yaml(value)}" for name, value in self.options.items())
        return f"{self.scheduler} with {options}" if options else self.scheduler


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_SDE = {"algorithm_type": "sde-dpmsolver++"}

NAMES: Mapping[tuple[str, ...], Sampler] = {
    ("Euler",): Sampler(scheduler="EulerDiscreteScheduler"),
    ("Euler a", "euler_ancestral"): Sampler(scheduler="EulerAncestralDiscreteScheduler"),
    ("LMS",): Sampler(scheduler="LMSDiscreteScheduler"),
    ("Heun",): Sampler(scheduler="HeunDiscreteScheduler"),
    ("DPM2",): Sampler(scheduler="KDPM2DiscreteScheduler"),
    ("DPM2 a", "dpm_2_ancestral"): Sampler(scheduler="KDPM2AncestralDiscreteScheduler"),
    ("DPM++ 2M", "dpmpp_2", "DPM-Solver++"): Sampler(scheduler="DPMSolverMultistepScheduler"),
    ("KarrasDPM",): Sampler(scheduler="DPMSolverMultistepScheduler", options={"use_karras_sigmas": True}),
    ("DPM++ 2M SDE",): Sampler(scheduler="DPMSolverMultistepScheduler", options=_SDE),
    ("DPM++ 2M SDE Heun",): Sampler(
        scheduler="DPMSolverMultistepScheduler", options=_SDE | {"solver_type": "heun"}
    ),
    ("DPM++ 3M",): Sampler(scheduler="DPMSolverMultistepScheduler", options={"solver_order": 3}),
    ("DPM++ 3M SDE",): Sampler(scheduler="DPMSolverMultistepScheduler", options=_SDE | {"solver_order": 3}),
    ("DPM++ 2S", "DPM++ 2S a", "dpmpp_2s_ancestral"): Sampler(scheduler="DPMSolverSinglestepScheduler"),
    ("DPM++ SDE",): Sampler(scheduler="DPMSolverSinglestepScheduler"),
    ("DDIM",): Sampler(scheduler="DDIMScheduler"),
    ("DDPM",): Sampler(scheduler="DDPMScheduler"),
    ("PNDM",): Sampler(scheduler="PNDMScheduler"),
    # PLMS is PNDM without its first Runge-Kutta steps.
    ("PLMS",): Sampler(scheduler="PNDMScheduler", options={"skip_prk_steps": True}),
    ("UniPC", "uni_pc"): Sampler(scheduler="UniPCMultistepScheduler"),
    ("uni_pc_bh2",): Sampler(scheduler="UniPCMultistepScheduler", options={"solver_type": "bh2"}),
    ("DEIS",): Sampler(scheduler="DEISMultistepScheduler"),
    ("SA Solver",): Sampler(scheduler="SASolverScheduler"),
    ("LCM",): Sampler(scheduler="LCMScheduler"),
    ("TCD",): Sampler(scheduler="TCDScheduler"),
}
"""Samplers by the names that tools have for them, as docs/job-spec.md lists them."""

_LINEAR: Settings = {"timestep_spacing": "linspace"}

ENDINGS: Mapping[tuple[str, ...], Settings] = {
    ("Karras", "k", "ka"): {"use_karras_sigmas": True},
    ("Exponential",): {**_LINEAR, "use_exponential_sigmas": True},
    ("Beta",): {**_LINEAR, "use_beta_sigmas": True},
    ("SGM Uniform", "Simple", "Trailing"): {"timestep_spacing": "trailing"},
    ("Normal", "Automatic", "GPU"): {},
}
"""What a name may end with, and the options that this adds: how the noise levels are placed."""

ABSENT = frozenset({"dpmadaptive", "dpmad", "dpmfast", "restart", "heunpp", "heunpp2"})
"""Samplers of other tools that nothing in diffusers stands for, in the form of `_key`."""


def _key(name: str) -> str:
    """The name as it is compared: in small letters, without spaces, `_` and `-`, and with `pp` for `++`."""
    return re.sub(r"[\s_-]", "", name.lower().replace("++", "pp"))


def _without_ending(scheduler: str) -> str:
    return scheduler.removesuffix("Scheduler")


def _with_endings(name: str, sampler: Sampler) -> Iterator[tuple[str, Sampler]]:
    """(name, sampler) for the name alone and with each ending that its class has the options for."""
    yield name, sampler
    has = SCHEDULERS[sampler.scheduler]
    for endings, options in ENDINGS.items():
        # A class without this option places its times linearly.
        added = {key: value for key, value in options.items() if key in has or options[key] != "linspace"}
        if added.keys() <= has.keys():
            both = Sampler(scheduler=sampler.scheduler, options={**sampler.options, **added})
            yield from ((f"{name} {ending}", both) for ending in endings)


def _every_name() -> Iterator[tuple[str, Sampler]]:
    for names, sampler in NAMES.items():
        for name in names:
            yield from _with_endings(name, sampler)
    for scheduler in SCHEDULERS:
        yield from _with_endings(_without_ending(scheduler), Sampler(scheduler=scheduler))
    for scheduler in MISFITS:
        yield _without_ending(scheduler), Sampler(scheduler=scheduler)


_SAMPLERS = {_key(name): sampler for name, sampler in _every_name()}
_ENDING_KEYS = {_key(ending) for endings in ENDINGS for ending in endings}
_HINTS = (*SCHEDULERS, *(name for names in NAMES for name in names), "DPM++ 2M Karras", "DPM++ 2M SDE Karras")


@lru_cache(maxsize=4096)
def read_sampler(name: str) -> Sampler | None:
    """What the name stands for, or None if darkroom does not know it. A class stands for itself."""
    if name in SCHEDULERS or name in MISFITS:
        return Sampler(scheduler=name)
    if len(name) > _MAX_NAME:
        return None
    key = _key(name).removesuffix("scheduler")
    # k-diffusion's samplers often begin with `k_`; the name of a class may begin with a k of its own.
    return _SAMPLERS.get(key) or _SAMPLERS.get(key.removeprefix("k"))


def reading(name: str) -> str | None:
    """The text "`NAME` is read as ...", or None if the name is a class, or not known at all."""
    sampler = read_sampler(name)
    return None if sampler is None or sampler.scheduler == name else f"`{name}` is read as {sampler}"


@lru_cache(maxsize=4096)
def settled(name: str, options: str | None, *, name_wins: bool = False) -> tuple[str, str | None]:
    """(class, options) for a name and the JSON text of the options that are set; an unknown name is kept.

    An option that is set wins over one that the name implies, unless `name_wins`. Raises ValueError if the
    text cannot be read.
    """
    sampler = read_sampler(name)
    if sampler is None or not sampler.options:
        return sampler.scheduler if sampler else name, options
    chosen = parse_options(options) if options is not None else {}
    merged = {**chosen, **sampler.options} if name_wins else {**sampler.options, **chosen}
    return sampler.scheduler, options_text(merged)


def with_sampler(
    values: Mapping[str, ParameterValue | None], *, name_wins: bool = False
) -> dict[str, ParameterValue | None]:
    """The values, with the class and the options that their `scheduler` stands for; see `settled`."""
    if not values.get("scheduler"):
        return {**values}
    options = values.get("scheduler_options")
    scheduler, text = settled(
        str(values["scheduler"]), None if options is None else str(options), name_wins=name_wins
    )
    return {**values, "scheduler": scheduler, "scheduler_options": text}


def unknown_scheduler(name: str) -> str | None:
    """The message that this is not a scheduler for Stable Diffusion, or None if darkroom knows it."""
    if read_sampler(name):
        return None
    if _key(name) in ABSENT:
        why = ": diffusers 0.42.1 does not have this sampler"
    else:
        why = _wrong_ending(name) or did_you_mean(name, _HINTS)
    known = ", ".join(SCHEDULERS)
    return f"`{shown(name)}` is not a scheduler for Stable Diffusion{why}; schedulers are {known}"


def _wrong_ending(name: str) -> str | None:
    """What is wrong with the name of a noise schedule that has no scheduler, or not one that can use it."""
    key = _key(name[:_MAX_NAME])
    if key in _ENDING_KEYS:
        return ", but says how noise levels are placed; name both, as in `DPM++ 2M Karras`"
    for ending in _ENDING_KEYS:
        sampler = read_sampler(key.removesuffix(ending)) if key.endswith(ending) else None
        if sampler:
            return f": {sampler.scheduler} cannot place its noise levels so; leave the ending out"
    return None
