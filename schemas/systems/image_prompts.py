"""The parameters with which a picture says what an image should show, by means of an IP-Adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

IMAGE_PROMPT = "ip_adapter_image"
"""The field with the picture that an IP-Adapter shows to the model."""
MAX_SCALE = 10.0

IP_ADAPTER: Mapping[str, Any] = MappingProxyType({"ip_adapter": None, "ip_adapter_scale": 1.0})
"""The parameters of systems that take IP-Adapters, with their defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrompt:
    """How a picture says what an image should show."""

    ip_adapter: str
    """The adapter's name in the spec."""
    ip_adapter_scale: float
    """How strongly."""


def image_prompt_of(parameters: Mapping[str, Any]) -> ImagePrompt | None:
    """The image prompt of these parameters; None without an adapter, or with a scale of 0."""
    name, scale = parameters.get("ip_adapter"), parameters.get("ip_adapter_scale")
    return ImagePrompt(ip_adapter=str(name), ip_adapter_scale=float(scale)) if name and scale else None


def settled_image_prompt(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in a form in which images without an image prompt have equal ones."""
    idle = {} if image_prompt_of(parameters) else dict.fromkeys(IP_ADAPTER.keys() & parameters.keys())
    return {**parameters, **idle}
