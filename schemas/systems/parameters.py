"""The parameters that a row may set, under diffusers' own names.

Each parameter is declared once, here. The YAML's routes, the checks of a Parquet file's columns, the output's
columns and the JSON schema for editors are all derived from these fields.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schemas.systems import image_prompts
from schemas.systems.adapter_weights import checked_weights, weights_text
from schemas.systems.control_parameters import MAX_MODE, MAX_SCALE, checked_controls, controls_text
from schemas.systems.recipes import RECIPES
from schemas.systems.schedulers import Setting, options_text

ParameterValue = int | float | str | tuple[int, int]
"""A pair is (height, width), or (top, left)."""

MAX_SIZE = 65_504
"""The largest number of a pair, which is float16's: XL's pipelines cast these conditions to their dtype."""

Pair = Annotated[list[int], Field(min_length=2, max_length=2)]

_SLD_NUMBERS = (
    "sld_guidance_scale",
    "sld_warmup_steps",
    "sld_threshold",
    "sld_momentum_scale",
    "sld_mom_beta",
)
SLD_PRESETS: Mapping[str, Mapping[str, ParameterValue]] = {
    "weak": dict(zip(_SLD_NUMBERS, (20.0, 15, 0.0, 0.0, 0.0), strict=True)),
    "medium": dict(zip(_SLD_NUMBERS, (1000.0, 10, 0.01, 0.3, 0.4), strict=True)),
    "strong": dict(zip(_SLD_NUMBERS, (2000.0, 7, 0.025, 0.5, 0.7), strict=True)),
    "max": dict(zip(_SLD_NUMBERS, (5000.0, 0, 1.0, 0.5, 0.7), strict=True)),
}
"""The numbers of each `sld_preset`: diffusers 0.42.1's `SafetyConfig`, in the package
pipelines/deprecated/stable_diffusion_safe."""


_PRESETS: Mapping[str, Mapping[str, Mapping[str, ParameterValue]]] = {
    "sld_preset": SLD_PRESETS,
    "recipe": RECIPES,
}
"""The parameters that stand for several others, with the values of each of their names."""


def with_preset(values: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
    """The values that a row or a route sets, and its preset's or recipe's for those that it does not set."""
    presets = [names[str(values[parameter])] for parameter, names in _PRESETS.items() if parameter in values]
    return {name: value for each in (*presets, values) for name, value in each.items()}


class StrictModel(BaseModel):
    """A frozen part of a spec; unknown keys and values of another type are refused."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Parameters(StrictModel):
    """Values that a route sets for its rows. A row's own column overrides them."""

    recipe: Literal["lcm", "turbo", "lightning", "hyper"] | None = None
    """How a few-step model or LoRA wants to be called: one name for a scheduler with its options, a number of
    steps and a guidance scale. A value that is set itself overrides the recipe's."""
    num_inference_steps: int | None = Field(default=None, ge=1, le=1000)
    """The number of denoising steps. Each costs at least one UNet call."""
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    """The scale of classifier-free guidance. At 1 and below there is no guidance and no negative prompt, at
    half the cost."""
    guidance_rescale: float | None = Field(default=None, ge=0, le=1)
    """The share of the guided noise to rescale, against over-exposure (arXiv 2305.08891, section 3.4)."""
    strength: float | None = Field(default=None, ge=0, le=1)
    """How much of the input image is repainted: the share of the steps that run."""
    height: int | None = Field(default=None, ge=8, le=8192)
    """The height of the result in pixels, a multiple of the model's VAE factor (8)."""
    width: int | None = Field(default=None, ge=8, le=8192)
    """The width of the result in pixels, a multiple of the model's VAE factor (8)."""
    eta: float | None = Field(default=None, ge=0, le=1)
    """How much noise DDIM (arXiv 2010.02502) and TCD add back in each step; other schedulers ignore it."""
    clip_skip: int | None = Field(default=None, ge=1, le=32)
    """The number of the text encoder's last layers that are skipped."""
    noise_level: int | None = Field(default=None, ge=0, le=999)
    """How much noise is added to the image before it is upscaled. Upscalers are trained for 0 to 350."""
    padding_mask_crop: int | None = Field(default=None, ge=0, le=4096)
    """The margin around the mask in pixels: only this crop is repainted, at full size, and pasted back."""
    # A thousandth is one timestep. diffusers 0.42.1 silently ignores the values 0 and 1.
    denoising_start: float | None = Field(default=None, ge=0.001, le=0.999)
    """The share of the steps that another model has done already (for SDXL's refiner)."""
    denoising_end: float | None = Field(default=None, ge=0.001, le=0.999)
    """The share of the steps after which the model stops and hands on its latents (for SDXL's base)."""
    original_size: Pair | None = None
    """A condition for SDXL: the [height, width] that the training image had."""
    crops_coords_top_left: Pair | None = None
    """A condition for SDXL: the [top, left] at which the training image was cropped."""
    target_size: Pair | None = None
    """A condition for SDXL: the [height, width] of the crop."""
    negative_original_size: Pair | None = None
    """Like original_size, for the negative prompt."""
    negative_crops_coords_top_left: Pair | None = None
    """Like crops_coords_top_left, for the negative prompt."""
    negative_target_size: Pair | None = None
    """Like target_size, for the negative prompt."""
    aesthetic_score: float | None = Field(default=None, ge=0, le=10)
    """A condition for SDXL's refiner: the aesthetic score of the image."""
    negative_aesthetic_score: float | None = Field(default=None, ge=0, le=10)
    """A condition for SDXL's refiner: the aesthetic score of an unwanted image."""
    sld_preset: Literal["weak", "medium", "strong", "max"] | None = None
    """One name for a set of the five numbers below (Safe latent diffusion, arXiv 2211.05105). A number that
    is set itself overrides the preset's."""
    sld_guidance_scale: float | None = Field(default=None, ge=0, le=100_000)
    """How hard Safe pushes the image away from unsafe content. At 1 and below, it does not push."""
    sld_warmup_steps: int | None = Field(default=None, ge=0, le=1000)
    """The number of UNet calls before Safe begins to push."""
    sld_threshold: float | None = Field(default=None, ge=-10, le=10)
    """How near to unsafe content a latent must be before Safe pushes it."""
    sld_momentum_scale: float | None = Field(default=None, ge=0, le=1)
    """How much of the earlier pushes is added; 0 is none."""
    sld_mom_beta: float | None = Field(default=None, ge=0, lt=1)
    """How slowly the earlier pushes fade."""
    scheduler: str | None = None
    """A diffusers scheduler class, or the name that another tool has for a sampler. It is built with the
    checkpoint's own scheduler configuration."""
    scheduler_options: dict[str, Setting] | None = None
    """Changes of that configuration, such as {use_karras_sigmas: true}; {} for none."""
    loras: dict[str, float] | None = None
    """The LoRAs to apply, by the names that the model has for them, each with a weight from -10 to 10, such
    as {chalk: 0.8}; {} for none. At most 16; those with a weight of 0 do not count."""

    controlnet: str | None = None
    """The ControlNet that guides the image, by the name that the model has for it; an empty text for none.
    The row's `control_image` says what it is to follow."""
    controlnet_conditioning_scale: float | None = Field(default=None, ge=0, le=MAX_SCALE)
    """How strongly the ControlNet guides the image."""
    control_guidance_start: float | None = Field(default=None, ge=0, le=1)
    """The share of the steps after which the ControlNet begins to guide."""
    control_guidance_end: float | None = Field(default=None, ge=0, le=1)
    """The share of the steps after which it no longer guides."""
    guess_mode: bool | None = None
    """true: the ControlNet guides only the prompt's half of guidance, and its first layers less."""

    control_mode: int | None = Field(default=None, ge=0, le=MAX_MODE)
    """What the control image shows, by the number that a union of ControlNets has for it."""
    controls: list[dict[str, Setting]] | None = None
    """Several ControlNets for one image: a list of {controlnet: NAME}, each perhaps with a scale, start and
    end of its own; [] for none."""

    ip_adapter: str | None = None
    """The IP-Adapter that shows the row's `ip_adapter_image` to the model, by the name that the model has for
    it; an empty text for none."""
    ip_adapter_scale: float | None = Field(default=None, ge=0, le=image_prompts.MAX_SCALE)
    """How much the picture counts beside the prompt; 0 is nothing."""

    @field_validator("controls")
    @classmethod
    def _allowed_controls(cls, controls: list[dict[str, Setting]] | None) -> list[dict[str, Setting]] | None:
        checked_controls(controls or [])
        return controls

    @model_validator(mode="after")
    def _names_controls_once(self) -> "Parameters":
        if self.controls and self.controlnet:
            raise ValueError("`controlnet` and `controls` exclude each other; name all of them in `controls`")
        return self

    @field_validator("loras")
    @classmethod
    def _allowed_weights(cls, loras: dict[str, float] | None) -> dict[str, float] | None:
        checked_weights(loras or {})
        return loras

    def controlnets(self) -> list[str]:
        """The names of the ControlNets that guide the images."""
        names = [str(entry["controlnet"]) for entry in self.controls or ()]
        return names or ([self.controlnet] if self.controlnet else [])

    def control_ranges(self) -> list[tuple[float, float]]:
        """The shares of the steps from and to which ControlNets guide: the route's own, and each entry's."""
        start = 0.0 if self.control_guidance_start is None else self.control_guidance_start
        end = 1.0 if self.control_guidance_end is None else self.control_guidance_end
        entries = checked_controls(self.controls or ())
        of_entries = (
            (each.get("control_guidance_start", start), each.get("control_guidance_end", end))
            for each in entries
        )
        return [(start, end), *of_entries]

    def set_parameters(self) -> dict[str, ParameterValue]:
        """The parameters that are set, by name, in the order of their declaration."""
        values = ((name, getattr(self, name)) for name in Parameters.model_fields)
        return {name: _settled(value, PARAMETERS[name].kind) for name, value in values if value is not None}


def _settled(value: Any, kind: str) -> ParameterValue:
    """The value as rows have it, in a hashable form: a pair as a tuple, options and weights as JSON text."""
    if kind == "controls":
        return controls_text(value)
    if isinstance(value, dict):
        return weights_text(value) if kind == "weights by name" else options_text(value)
    return (value[0], value[1]) if isinstance(value, list) else value


Kind = Literal[
    "whole number",
    "number",
    "true or false",
    "text",
    "pair of whole numbers",
    "options",
    "weights by name",
    "controls",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The values that a parameter may have."""

    kind: Kind
    minimum: float
    """The least value allowed."""
    maximum: float
    """The greatest value allowed."""
    choices: tuple[str, ...]
    """The texts allowed; empty if the value is not a text, or if another module checks it: schedulers.py or
    adapter_weights.py in schemas/systems/."""


_KINDS: dict[object, Kind] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Literal: "text",
    list[int]: "pair of whole numbers",
    dict[str, Setting]: "options",
    list[dict[str, Setting]]: "controls",
    dict[str, float]: "weights by name",
}


def _read_bounds(name: str) -> Bounds:
    field = Parameters.model_fields[name]
    # Annotated[list[int], ...] has list[int] as its origin, Literal[...] has Literal.
    members = [
        member.__origin__ if get_origin(member) in (Annotated, Literal) else member
        for member in get_args(field.annotation)
    ]
    kind = next(_KINDS[member] for member in members if member in _KINDS)
    lows = [limit.ge for limit in field.metadata if isinstance(limit, Ge)]
    highs = [limit.le for limit in field.metadata if isinstance(limit, Le)]
    highs += [math.nextafter(float(str(limit.lt)), 0) for limit in field.metadata if isinstance(limit, Lt)]
    pair = kind == "pair of whole numbers"
    texts = [member for member in get_args(field.annotation) if get_origin(member) is Literal]
    return Bounds(
        kind=kind,
        minimum=float(str(lows[0])) if lows else (0 if pair else float("-inf")),
        maximum=float(str(highs[0])) if highs else (MAX_SIZE if pair else float("inf")),
        choices=tuple(str(choice) for text in texts for choice in get_args(text)),
    )


PARAMETERS: dict[str, Bounds] = {name: _read_bounds(name) for name in Parameters.model_fields}
"""Every parameter that a row may set, in the order of the output's columns."""
