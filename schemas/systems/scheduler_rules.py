"""Why a row cannot have a scheduler with its checkpoint, its options and its number of steps.

Each rule stands for a case in which diffusers 0.42.1 raises, or returns NaN or a wrong image.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from schemas.systems.sampler_names import reading, settled, unknown_scheduler
from schemas.systems.schedulers import (
    MISFITS,
    SCHEDULERS,
    SIGMA_SWITCHES,
    WITHHELD_OPTIONS,
    Option,
    Setting,
    Settings,
    parse_options,
    shown,
)
from schemas.wording.nearest import did_you_mean

_NEVER = "DPMSolverSDEScheduler"
"""It is refused even if the checkpoint is published with it: a row's image would depend on its batch."""
_EDM = frozenset({"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"})
"""Two schedulers that fit each other's checkpoints."""

_TRAIN_TIMESTEPS = 1000
_RUNGE_KUTTA_STEPS = 4
_MARKOV = frozenset({"DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler"})
_FROM_ZERO_SIGNAL = _MARKOV | {"LCMScheduler", "TCDScheduler"}
"""Schedulers that divide by the signal's share of the latents; the others keep it a little above 0."""
_SOLVERS = frozenset(
    {
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "SASolverScheduler",
        "UniPCMultistepScheduler",
    }
)
"""Schedulers that place one timestep more than there are steps."""
_INDEXED = _MARKOV | {"PNDMScheduler"}
"""Schedulers that raise if a timestep lies past the last one that the model was trained on."""
_DISTINCT_NOISE = _SOLVERS | {"LMSDiscreteScheduler"}
"""Schedulers that divide by the difference of two noise levels, which is zero past the last timestep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The scheduler that a checkpoint is published with."""

    name: str
    settings: tuple[tuple[str, Setting], ...]
    """The settings in its scheduler_config.json, as `scheduler_settings` returns them."""
    only: frozenset[str] | None = None
    """The only schedulers that the pipeline works with; None: all of them."""


@lru_cache(maxsize=4096)
def refusal(
    scheduler: str,
    options: str | None,
    published: Published,
    num_inference_steps: int | None = None,
    begins_late: bool = False,
    name_wins: bool = False,
) -> str | None:
    """The reason why rows cannot have this scheduler with these options (a JSON text), or None if they can.

    `scheduler` and `name_wins` are as in `settled`.
    `begins_late`: whether the first steps are left out, as in img2img at a strength below 1.
    Without `num_inference_steps`, only the rules that do not depend on it are checked.
    """
    try:
        cls, text = settled(scheduler, options, name_wins=name_wins)
    except ValueError as error:
        return f"scheduler_options cannot be read: {error}"
    reason = _class_refusal(cls, text, published, num_inference_steps, begins_late)
    read_as = reading(scheduler)
    return f"{reason} ({read_as})" if reason and read_as else reason


def _class_refusal(
    scheduler: str, options: str | None, published: Published, steps: int | None, begins_late: bool
) -> str | None:
    reason = _unfit(scheduler, published)
    if reason is not None:
        return reason
    try:
        chosen = parse_options(options) if options is not None else {}
    except ValueError as error:
        return f"scheduler_options cannot be read: {error}"
    if scheduler not in SCHEDULERS:
        return f"darkroom knows no options of {scheduler}; leave scheduler_options out" if chosen else None
    reason = _wrong_option(scheduler, chosen)
    if reason is not None:
        return reason
    settings = _effective(scheduler, published, chosen)
    reason = _conflict(scheduler, settings, steps, begins_late)
    if reason is not None or steps is None:
        return reason
    return _wrong_steps(scheduler, settings, steps, begins_late)


def _unfit(scheduler: str, published: Published) -> str | None:
    if published.only is not None and scheduler not in published.only:
        return f"{shown(scheduler)} does not fit this pipeline; it runs with {_listed(published.only)} only"
    if (scheduler == published.name and scheduler != _NEVER) or {scheduler, published.name} <= _EDM:
        return None
    if scheduler in MISFITS:
        return f"{scheduler} {MISFITS[scheduler]}; choose one of {', '.join(SCHEDULERS)}"
    if scheduler in SCHEDULERS and published.name not in SCHEDULERS and published.name != _NEVER:
        return f"{scheduler} does not fit a checkpoint published with {published.name}; leave scheduler out"
    return unknown_scheduler(scheduler)


def _wrong_option(scheduler: str, chosen: Settings) -> str | None:
    options = SCHEDULERS[scheduler]
    for name, value in chosen.items():
        if name not in options:
            if name in WITHHELD_OPTIONS:
                return f"scheduler_options: {name} cannot be set: {WITHHELD_OPTIONS[name]}"
            known = ", ".join(sorted(options))
            return (
                f"scheduler_options: {scheduler} has no option `{shown(name)}`{did_you_mean(name, options)}; "
                f"it has {known}"
            )
        expected = _expected_instead(options[name], value)
        if expected is not None:
            return f"scheduler_options: {name} is {shown(value)}; it must be {expected}"
    return None


def _expected_instead(option: Option, value: object) -> str | None:
    """What the option must be instead of this value, or None if the value fits."""
    if option.kind == "true or false":
        return None if isinstance(value, bool) else "true or false"
    if option.kind == "text":
        return None if value in option.choices else f"one of {', '.join(option.choices)}"
    kinds = (int,) if option.kind == "whole number" else (int, float)
    fits = type(value) in kinds and option.minimum <= value <= option.maximum  # type: ignore[operator]
    return None if fits else f"a {option.kind} from {option.minimum:.7g} to {option.maximum:.7g}"


def _effective(scheduler: str, published: Published, chosen: Settings) -> Settings:
    """The configuration with which the scheduler runs: that of `from_config(published, **chosen)`."""
    options = SCHEDULERS[scheduler]
    taken = {name: value for name, value in published.settings if name in options}
    times = dict(published.settings).get("num_train_timesteps", _TRAIN_TIMESTEPS)
    defaults = {name: option.default for name, option in options.items()}
    return defaults | {"num_train_timesteps": times} | taken | dict(chosen)


def _conflict(scheduler: str, settings: Settings, steps: int | None, begins_late: bool) -> str | None:
    """Why these settings, which include the checkpoint's own, cannot be combined; None if they can."""
    for name, option in SCHEDULERS[scheduler].items():
        value = settings[name]
        if option.choices and value not in (*option.choices, *option.translated):
            return (
                f"{scheduler} cannot use the checkpoint's own {name}, {shown(value)}; set it with "
                f"scheduler_options to one of {', '.join(option.choices)}"
            )
    switches = [name for name in SIGMA_SWITCHES if settings.get(name)]
    if len(switches) > 1:
        return f"{scheduler} takes only one of {', '.join(switches)}; set the others to false"
    if settings.get("final_sigmas_type") == "zero":
        return _no_end_at_zero(scheduler, settings, steps)
    spread = settings.get("timestep_spacing") != "leading" or "original_inference_steps" in settings
    blind = settings.get("rescale_betas_zero_snr") and settings["prediction_type"] == "epsilon"
    if blind and spread and scheduler in _FROM_ZERO_SIGNAL and not begins_late:
        return (
            f"{scheduler} with rescale_betas_zero_snr begins where there is no signal, and divides by it: "
            "that needs a checkpoint with prediction_type v_prediction"
        )
    return None


def _no_end_at_zero(scheduler: str, settings: Settings, steps: int | None) -> str | None:
    """Why the last sigma cannot be zero, or None if it can; without `steps`, for any number of them."""
    cause = None
    if scheduler.startswith("DPMSolver") and settings["algorithm_type"] in (
        "deis",
        "dpmsolver",
        "sde-dpmsolver",
    ):
        cause = f"algorithm_type {settings['algorithm_type']}"
    elif scheduler == "UniPCMultistepScheduler":
        if settings["solver_type"] == "bh1":
            cause = "solver_type bh1"
        elif not settings["predict_x0"]:
            cause = "predict_x0 false"
        elif not settings["lower_order_final"] and _as_int(settings["solver_order"]) > 1 and (steps or 1) > 1:
            # The first step is of order 1 in any case, and can end at zero.
            cause = "lower_order_final false"
    if cause is None:
        return None
    return f"{scheduler} with {cause} cannot end at a sigma of zero; set final_sigmas_type to sigma_min"


def _wrong_steps(scheduler: str, settings: Settings, steps: int, begins_late: bool) -> str | None:
    if "original_inference_steps" in settings:
        most = settings["original_inference_steps"]
        if steps > _as_int(most):
            return (
                f"{scheduler} takes at most {most} steps (its original_inference_steps), and "
                f"num_inference_steps is {steps}"
            )
    if settings.get("skip_prk_steps") is False:
        why = "because it is configured not to skip its Runge-Kutta steps"
        way_out = "or set scheduler_options: {skip_prk_steps: true}"
        if steps < _RUNGE_KUTTA_STEPS:
            return (
                f"PNDMScheduler needs at least {_RUNGE_KUTTA_STEPS} steps, {why}, and num_inference_steps is "
                f"{steps}; ask for more, {way_out}"
            )
        if begins_late:
            return (
                f"PNDMScheduler cannot leave out the first steps, {why}, which always begin at the first "
                f"timestep; set strength to 1, {way_out}"
            )
    if scheduler in _INDEXED | _DISTINCT_NOISE and not _times_fit(scheduler, settings, steps):
        return f"{scheduler} does not have {steps} different timesteps; lower num_inference_steps"
    return None


def _times_fit(scheduler: str, settings: Settings, steps: int) -> bool:
    """Whether the scheduler can use the timesteps that its own formula places for its spacing."""
    if any(settings.get(name) for name in (*SIGMA_SWITCHES, "use_lu_lambdas")):
        return True
    times, offset = _as_int(settings["num_train_timesteps"]), _as_int(settings["steps_offset"])
    points = steps + 1 if scheduler in _SOLVERS else steps
    if settings["timestep_spacing"] != "leading":
        return settings["timestep_spacing"] == "trailing" or points <= times
    stride = times // points
    greatest = (points - 1) * stride + offset
    return greatest < times if scheduler in _INDEXED else stride > 0 and greatest - stride < times - 1


def _as_int(value: Setting | None) -> int:
    return int(value) if isinstance(value, (int, float)) else 0


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
