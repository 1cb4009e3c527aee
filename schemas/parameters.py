"""The numbers and names a row may set, in diffusers' own words.

Each parameter is declared once, here: the YAML's routes, the checks on a Parquet file's columns, the
output's columns and the JSON schema for editors are all read from these fields.
"""

from dataclasses import dataclass

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field

ParameterValue = int | float | str


class StrictModel(BaseModel):
    """A frozen piece of a spec: unknown keys and values of another type are refused."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Parameters(StrictModel):
    """Values that a route sets for its rows; a row's own column beats them."""

    num_inference_steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps; each costs at least one UNet call."""
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    """Classifier-free guidance; 1 and below run without the negative prompt, at half the cost."""
    guidance_rescale: float | None = Field(default=None, ge=0, le=1)
    """Share of the guided noise that is rescaled, against over-exposure (arXiv 2305.08891, section 3.4)."""
    strength: float | None = Field(default=None, ge=0, le=1)
    """How much of the input image is repainted: the share of the steps that are run."""
    height: int | None = Field(default=None, ge=8, le=8192)
    """Pixels; a multiple of the model's VAE factor (8)."""
    width: int | None = Field(default=None, ge=8, le=8192)
    """Pixels; a multiple of the model's VAE factor (8)."""
    eta: float | None = Field(default=None, ge=0, le=1)
    """Noise added back per step by DDIM (arXiv 2010.02502); other schedulers ignore it."""
    clip_skip: int | None = Field(default=None, ge=1, le=32)
    """Layers of the text encoder left out, counted from its end."""
    scheduler: str | None = None
    """A diffusers scheduler class, built with the checkpoint's own scheduler configuration."""

    def set_parameters(self) -> dict[str, ParameterValue]:
        """Those that are set, by name, in the order of their declaration."""
        values = ((name, getattr(self, name)) for name in Parameters.model_fields)
        return {name: value for name, value in values if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a parameter's value must be."""

    kind: type
    """int, float or str."""
    minimum: float
    """The least value allowed."""
    maximum: float
    """The greatest value allowed."""


def _read_bounds(name: str) -> Bounds:
    field = Parameters.model_fields[name]
    kind = next(kind for kind in (int, float, str) if kind in field.annotation.__args__)  # type: ignore[union-attr]
    lows = [limit.ge for limit in field.metadata if isinstance(limit, Ge)]
    highs = [limit.le for limit in field.metadata if isinstance(limit, Le)]
    return Bounds(
        kind=kind,
        minimum=float(lows[0]) if lows else float("-inf"),  # type: ignore[arg-type]
        maximum=float(highs[0]) if highs else float("inf"),  # type: ignore[arg-type]
    )


PARAMETERS: dict[str, Bounds] = {name: _read_bounds(name) for name in Parameters.model_fields}
"""Every per-row parameter, in the order in which output columns stand."""

SCHEDULERS: frozenset[str] = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EDMEulerScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    }
)
"""What diffusers 0.42.1 lists as `compatibles` of Stable Diffusion's schedulers and what honours one
generator per row. DPMSolverSDEScheduler is left out: its `step` takes no generator, so a row's picture
would depend on its batch. A test compares this list with diffusers."""
