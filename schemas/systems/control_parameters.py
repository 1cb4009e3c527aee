"""The parameters with which a row has an image guided by a ControlNet."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from schemas.systems.parameters import ParameterValue

CONTROL: Mapping[str, ParameterValue | None] = MappingProxyType(
    {
        "controlnet": None,
        "controlnet_conditioning_scale": 1.0,
        "control_guidance_start": 0.0,
        "control_guidance_end": 1.0,
        "guess_mode": False,
    }
)
"""The parameters of systems that take ControlNets, with the defaults of most. They mean nothing in rows
without a ControlNet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A ControlNet that guides an image."""

    controlnet: str
    """Its name in the spec."""
    image: str
    """The field with the image that it makes the result follow."""
    scale: float
    start: float
    end: float
    """It guides from this share of the steps to that one."""


def controls_of(parameters: Mapping[str, ParameterValue | None]) -> tuple[Control, ...]:
    """The ControlNets that guide an image with these parameters; empty without any."""
    if not parameters.get("controlnet"):
        return ()
    scale, start, end = (
        float(str(parameters[name]))
        for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
    )
    net = str(parameters["controlnet"])
    return (Control(controlnet=net, image="control_image", scale=scale, start=start, end=end),)


def without_idle_controls(
    parameters: Mapping[str, ParameterValue | None],
) -> dict[str, ParameterValue | None]:
    """The parameters, of which those of CONTROL are None if there is no ControlNet."""
    idle = CONTROL.keys() & parameters.keys() if not controls_of(parameters) else set()
    return {name: None if name in idle else value for name, value in parameters.items()}
