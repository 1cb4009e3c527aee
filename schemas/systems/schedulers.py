"""The schedulers that rows can have, with their options; and those that they cannot have, with the reasons.

These are facts about diffusers 0.42.1, found by running every scheduler on every kind of checkpoint. The
tests run them again. Classes are only named, because the driver imports neither torch nor diffusers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Setting = bool | int | float | str
Settings = Mapping[str, Setting | None]
"""A scheduler's configuration, or a part of it, under diffusers' names."""

SettingKind = Literal["true or false", "whole number", "number", "text"]

MAX_WHOLE, MAX_NUMBER = 1000, 1e6
"""The greatest values of whole numbers and of other numbers; no scheduler has a use for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One argument of a scheduler's class."""

    kind: SettingKind
    default: Setting | None
    choices: tuple[str, ...] = ()
    """The texts that the option may be; empty if it is not a text."""
    translated: tuple[str, ...] = ()
    """Further texts that the class accepts in a checkpoint's configuration: those of other classes, or older
    ones."""
    minimum: float = -MAX_NUMBER
    maximum: float = MAX_NUMBER


def _switch(default: bool) -> Option:
    return Option(kind="true or false", default=default)


def _whole(default: int, minimum: int = 0, maximum: int = MAX_WHOLE) -> Option:
    return Option(kind="whole number", default=default, minimum=minimum, maximum=maximum)


def _number(default: float | None) -> Option:
    return Option(kind="number", default=default)


def _share(default: float) -> Option:
    return Option(kind="number", default=default, minimum=0, maximum=1)


def _one_of(default: str, *others: str, translated: tuple[str, ...] = ()) -> Option:
    return Option(kind="text", default=default, choices=(default, *others), translated=translated)


Options = Mapping[str, Option]

SIGMA_SWITCHES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Options that choose how the noise levels are placed; a scheduler takes at most one of them."""


def _betas(start: float, end: float, *schedules: str) -> Options:
    return {"beta_start": _share(start), "beta_end": _share(end), "beta_schedule": _one_of(*schedules)}


def _spacing(default: str) -> Options:
    others = [name for name in ("linspace", "leading", "trailing") if name != default]
    return {"timestep_spacing": _one_of(default, *others), "steps_offset": _whole(0)}


def _clip(default: bool) -> Options:
    return {"clip_sample": _switch(default), "clip_sample_range": _number(1.0)}


_BETAS = _betas(0.0001, 0.02, "linear", "scaled_linear", "squaredcos_cap_v2")
_K_BETAS = _betas(0.00085, 0.012, "linear", "scaled_linear", "squaredcos_cap_v2")
_FEW_STEP_BETAS = _betas(0.00085, 0.012, "scaled_linear", "linear", "squaredcos_cap_v2")
_DDPM_BETAS = _betas(0.0001, 0.02, "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
_PREDICTION: Options = {"prediction_type": _one_of("epsilon", "sample", "v_prediction")}
_NOISE_OR_VELOCITY: Options = {"prediction_type": _one_of("epsilon", "v_prediction")}
_SIGMAS: Options = dict.fromkeys(SIGMA_SWITCHES, _switch(False))
_SIGMA_RANGE: Options = {"sigma_min": _number(None), "sigma_max": _number(None)}
_ZERO_SNR: Options = {"rescale_betas_zero_snr": _switch(False)}
_FINAL_SIGMA: Options = {"final_sigmas_type": _one_of("zero", "sigma_min")}
_THRESHOLDING: Options = {
    "thresholding": _switch(False),
    "dynamic_thresholding_ratio": _share(0.995),
    "sample_max_value": _number(1.0),
}
_DDIM: Options = {
    **_BETAS,
    **_PREDICTION,
    **_THRESHOLDING,
    **_ZERO_SNR,
    **_clip(True),
    **_spacing("leading"),
    "set_alpha_to_one": _switch(True),
}
_DDPM: Options = {
    **_DDPM_BETAS,
    **_PREDICTION,
    **_THRESHOLDING,
    **_ZERO_SNR,
    **_clip(True),
    **_spacing("leading"),
    # Not fixed_large_log, which takes the root of a negative number.
    "variance_type": _one_of("fixed_small", "fixed_small_log", "fixed_large"),
}
_FEW_STEPS: Options = {
    **_FEW_STEP_BETAS,
    **_PREDICTION,
    **_THRESHOLDING,
    **_ZERO_SNR,
    **_clip(False),
    **_spacing("leading"),
    "set_alpha_to_one": _switch(True),
    "original_inference_steps": _whole(50),
    "timestep_scaling": _number(10.0),
}
_SOLVER: Options = {**_BETAS, **_PREDICTION, **_THRESHOLDING, **_SIGMAS, "solver_order": _whole(2, minimum=1)}
_DPM_SOLVER: Options = {
    **_SOLVER,
    **_FINAL_SIGMA,
    "solver_type": _one_of("midpoint", "heun", translated=("logrho", "bh1", "bh2")),
    "lambda_min_clipped": _number(float("-inf")),
}
_K_DPM_2: Options = {**_K_BETAS, **_SIGMAS, **_NOISE_OR_VELOCITY, **_spacing("linspace")}

SCHEDULERS: Mapping[str, Options] = {
    "DDIMParallelScheduler": _DDIM,
    "DDIMScheduler": _DDIM,
    "DDPMParallelScheduler": _DDPM,
    "DDPMScheduler": _DDPM,
    "DEISMultistepScheduler": {
        **_SOLVER,
        **_spacing("linspace"),
        "algorithm_type": _one_of("deis", translated=("dpmsolver", "dpmsolver++")),
        "solver_type": _one_of("logrho", translated=("midpoint", "heun", "bh1", "bh2")),
        "lower_order_final": _switch(True),
    },
    "DPMSolverMultistepScheduler": {
        **_DPM_SOLVER,
        **_ZERO_SNR,
        **_spacing("linspace"),
        "algorithm_type": _one_of(
            "dpmsolver++", "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++", translated=("deis",)
        ),
        "lower_order_final": _switch(True),
        "euler_at_final": _switch(False),
        "use_lu_lambdas": _switch(False),
    },
    "DPMSolverSinglestepScheduler": {
        **_DPM_SOLVER,
        "solver_order": _whole(2, minimum=1, maximum=3),
        "algorithm_type": _one_of("dpmsolver++", "dpmsolver", "sde-dpmsolver++", translated=("deis",)),
        "lower_order_final": _switch(False),
    },
    "EulerAncestralDiscreteScheduler": {
        **_BETAS,
        **_NOISE_OR_VELOCITY,
        **_ZERO_SNR,
        **_spacing("linspace"),
    },
    "EulerDiscreteScheduler": {
        **_BETAS,
        # The published latent upscaler says original_sample, an old name of sample that only Euler accepts.
        "prediction_type": _one_of("epsilon", "sample", "v_prediction", translated=("original_sample",)),
        **_SIGMAS,
        **_SIGMA_RANGE,
        **_FINAL_SIGMA,
        **_ZERO_SNR,
        **_spacing("linspace"),
        "interpolation_type": _one_of("linear", "log_linear"),
    },
    "HeunDiscreteScheduler": {
        **_K_BETAS,
        **_PREDICTION,
        **_SIGMAS,
        **_clip(False),
        **_spacing("linspace"),
    },
    "KDPM2AncestralDiscreteScheduler": _K_DPM_2,
    "KDPM2DiscreteScheduler": _K_DPM_2,
    "LCMScheduler": _FEW_STEPS,
    "LMSDiscreteScheduler": {**_BETAS, **_PREDICTION, **_SIGMAS, **_spacing("linspace")},
    "PNDMScheduler": {
        **_BETAS,
        **_NOISE_OR_VELOCITY,
        **_spacing("leading"),
        "skip_prk_steps": _switch(False),
        "set_alpha_to_one": _switch(False),
    },
    "SASolverScheduler": {
        **_BETAS,
        **_PREDICTION,
        **_THRESHOLDING,
        **_SIGMAS,
        **_spacing("linspace"),
        "predictor_order": _whole(2, minimum=1),
        "corrector_order": _whole(2, minimum=1),
        "algorithm_type": _one_of("data_prediction", "noise_prediction"),
        "lower_order_final": _switch(True),
        "lambda_min_clipped": _number(float("-inf")),
    },
    "TCDScheduler": _FEW_STEPS,
    "UniPCMultistepScheduler": {
        **_SOLVER,
        **_SIGMA_RANGE,
        **_FINAL_SIGMA,
        **_ZERO_SNR,
        **_spacing("linspace"),
        "solver_type": _one_of("bh2", "bh1", translated=("midpoint", "heun", "logrho")),
        "predict_x0": _switch(True),
        "lower_order_final": _switch(True),
    },
}
"""The options of each scheduler that fits these models and gives a row the same image in any batch.

These are all such `compatibles` of Stable Diffusion's schedulers, and five more that use the same betas.
"""

_UNTRAINED_TIMES = (
    "tells the UNet the time on a scale of its own, from about -2 to 1, and this UNet was trained on 0 to 999"
)
_FLOW = "is for models trained with flow matching, and takes no betas from this checkpoint's configuration"
_INVERSE = "goes from an image to its noise, not back"

MISFITS: Mapping[str, str] = {
    "DDIMInverseScheduler": _INVERSE,
    "DPMSolverMultistepInverseScheduler": _INVERSE,
    "DPMSolverSDEScheduler": (
        "takes no generator in its steps, so a row's image would depend on the other rows of its batch (and "
        "it needs torchsde); sde-dpmsolver++ is DPMSolverMultistepScheduler with that as its algorithm_type"
    ),
    "EDMDPMSolverMultistepScheduler": _UNTRAINED_TIMES,
    "EDMEulerScheduler": _UNTRAINED_TIMES,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": _FLOW,
    "IPNDMScheduler": _UNTRAINED_TIMES,
}
"""Schedulers that rows cannot choose, and why, as the end of a sentence that begins with the scheduler.

A row can still use one that its checkpoint is published with, except DPMSolverSDEScheduler.
"""

_FLOW_OPTION = "it is for models trained with flow matching"
_TRAINED = "it is what the checkpoint was trained with"
_NO_VALUE = "it is not a single value"

WITHHELD_OPTIONS: Mapping[str, str] = {
    "num_train_timesteps": _TRAINED,
    "trained_betas": _TRAINED,
    "timestep_type": "its other value is for models that were trained on another scale of time",
    "use_flow_sigmas": _FLOW_OPTION,
    "flow_shift": _FLOW_OPTION,
    "use_dynamic_shifting": _FLOW_OPTION,
    "time_shift_type": _FLOW_OPTION,
    "shift_terminal": _FLOW_OPTION,
    "variance_type": "these models predict no variance",
    "tau_func": _NO_VALUE,
    "solver_p": _NO_VALUE,
    "disable_corrector": _NO_VALUE,
}
"""Arguments of the classes above that a row cannot set, and why."""


def scheduler_settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    """Those settings of a scheduler_config.json that are options here, and `num_train_timesteps`."""
    known = {name for options in SCHEDULERS.values() for name in options} | {"num_train_timesteps"}
    return {name: value for name, value in config.items() if name in known and isinstance(value, Setting)}


def parse_options(text: str, example: str = '{"use_karras_sigmas": true}') -> Settings:
    """The options in a JSON text, without nulls; ValueError says what is wrong with the text.

    `example`: a text that would do, for the message.
    """
    try:
        options = json.loads(text, object_pairs_hook=without_repeats, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not a JSON object such as {example}") from error
    if not isinstance(options, dict):
        raise ValueError(f"it is not a JSON object such as {example}")
    return {name: value for name, value in options.items() if value is not None}


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these pairs, for `json.loads`; ValueError if a name appears in it twice."""
    options = dict(pairs)
    if len(options) != len(pairs):
        raise ValueError("a name appears in it twice")
    return options


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def options_text(options: Mapping[str, Any]) -> str:
    """The JSON text of the options, in a form in which equal options have equal texts."""
    settled = {
        name: float(value) if _is_whole_for_number(name, value) else value
        for name, value in options.items()
        if value is not None
    }
    return json.dumps(settled, sort_keys=True, separators=(",", ":"))


def _is_whole_for_number(name: str, value: object) -> bool:
    return _KINDS.get(name) == "number" and type(value) is int and abs(value) <= MAX_NUMBER


_KINDS: Mapping[str, SettingKind] = {
    name: option.kind for options in SCHEDULERS.values() for name, option in options.items()
}


def shown(value: object) -> str:
    """The value as a message shows it: printable, and cut if it is long."""
    text = str(value) if isinstance(value, str) and value.isprintable() else json.dumps(value, default=str)
    return text if len(text) <= 100 else f"{text[:100]}..."
