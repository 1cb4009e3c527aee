"""The parameters with which a row has an image guided by ControlNets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from schemas.systems.schedulers import shown, without_repeats
from schemas.wording.nearest import did_you_mean

MAX_CONTROLS = 4
"""The most ControlNets that guide one image."""
MAX_SCALE = 10.0
CONTROL_IMAGES = ("control_image", *(f"control_image_{number}" for number in range(2, MAX_CONTROLS + 1)))
"""The fields with the images that ControlNets make the result follow: the one of each by its position."""

_NUMBERS: Mapping[str, float] = {
    "controlnet_conditioning_scale": MAX_SCALE,
    "control_guidance_start": 1.0,
    "control_guidance_end": 1.0,
}
"""The greatest values of what may be set for each ControlNet; the least is 0."""

ENTRY_KEYS = ("controlnet", *_NUMBERS, "control_mode")
"""The keys of an entry of `controls`."""
MAX_MODE = 31
"""The greatest `control_mode`; published unions have up to eight."""

CONTROL: Mapping[str, Any] = MappingProxyType(
    {
        "controlnet": None,
        "controlnet_conditioning_scale": 1.0,
        "control_guidance_start": 0.0,
        "control_guidance_end": 1.0,
        "guess_mode": False,
        "control_mode": None,
        "controls": None,
    }
)
"""The parameters of systems that take ControlNets, with the defaults of most. They mean nothing in rows
without a ControlNet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A ControlNet that guides an image."""

    controlnet: str
    """Its name in the spec."""
    controlnet_conditioning_scale: float
    control_guidance_start: float
    control_guidance_end: float
    """It guides from that share of the steps to this one."""
    control_mode: int | None = None
    """What the image shows, if the ControlNet is a union."""


def checked_controls(entries: Sequence[Any]) -> list[dict[str, Any]]:
    """The entries of `controls` without nulls and unknown keys; ValueError says what is wrong with them."""
    if len(entries) > MAX_CONTROLS:
        raise ValueError(f"it has {len(entries):,} ControlNets; at most {MAX_CONTROLS} guide an image")
    return [_checked(entry) for entry in entries]


def _checked(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("controlnet"), str):
        raise ValueError('each entry names a ControlNet, such as {"controlnet": "canny"}')
    if not entry["controlnet"]:
        raise ValueError("an entry has an empty name; leave the entry out")
    if unknown := [key for key in entry if key not in ENTRY_KEYS]:
        raise ValueError(
            f"`{shown(unknown[0])}` is not a key of an entry{nearest_key(unknown[0])}; keys are "
            f"{', '.join(ENTRY_KEYS)}. The images are in the columns {', '.join(CONTROL_IMAGES)}"
        )
    checked = {"controlnet": entry["controlnet"]}
    for name, most in _NUMBERS.items():
        value = entry.get(name)
        if value is None:
            continue
        # Python counts booleans as whole numbers.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
            raise ValueError(f"{name} is {shown(value)}; it must be a number from 0 to {most:g}")
        checked[name] = float(value)
    mode = entry.get("control_mode")
    if mode is not None:
        if isinstance(mode, bool) or mode not in range(MAX_MODE + 1):
            raise ValueError(f"control_mode is {shown(mode)}; it must be a whole number from 0 to {MAX_MODE}")
        checked["control_mode"] = int(mode)
    return checked


def nearest_key(unknown: str) -> str:
    """` (did you mean X?)` with the key of an entry that is near, or that has this word in it; else empty."""
    with_word = next((key for key in ENTRY_KEYS if unknown in key.split("_")), unknown)
    return did_you_mean(unknown, ENTRY_KEYS) or did_you_mean(with_word, ENTRY_KEYS)


_NO_LIST = 'it is not a JSON list such as [{"controlnet": "canny"}]'


def parse_controls(text: str) -> list[dict[str, Any]]:
    """The entries in a JSON text such as `[{"controlnet": "canny"}]`; ValueError says what is wrong."""
    try:
        entries = json.loads(text, object_pairs_hook=without_repeats)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(_NO_LIST) from error
    if not isinstance(entries, list):
        raise ValueError(_NO_LIST)
    return checked_controls(entries)


def controls_text(entries: Sequence[Any]) -> str:
    """The JSON text of the entries, in a form in which equal ones have equal texts."""
    return json.dumps(checked_controls(entries), separators=(",", ":"))


def with_own_controls(route: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row over those of its route: its own `controls` or `controlnet` replaces either."""
    replaced = {"controlnet": None, "controls": None} if {"controls", "controlnet"} & own.keys() else {}
    return {**route, **{name: replaced[name] for name in replaced if name in route}, **own}


def controls_of(parameters: Mapping[str, Any]) -> tuple[Control, ...]:
    """The ControlNets that guide an image with these parameters; empty without any.

    What an entry of `controls` leaves out is as in the parameters themselves.
    """
    entries = parse_controls(str(parameters.get("controls") or "[]"))
    if not entries and parameters.get("controlnet"):
        entries = [{"controlnet": parameters["controlnet"]}]
    return tuple(
        Control(
            controlnet=str(entry["controlnet"]),
            **{name: float(entry.get(name, parameters[name])) for name in _NUMBERS},
            control_mode=entry.get("control_mode", parameters.get("control_mode")),
        )
        for entry in entries
    )


def settled_controls(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in a form in which images that are guided alike have equal ones.

    A single ControlNet is in `controlnet`, several are in `controls`, and what is of no use is None.
    """
    idle = dict.fromkeys(CONTROL.keys() & parameters.keys())
    controls = controls_of(parameters)
    if not controls:
        return {**parameters, **idle}
    settled = {**parameters, **idle, "guess_mode": parameters["guess_mode"]}
    entries = [asdict(each) for each in controls]
    return {**settled, **entries[0]} if len(entries) == 1 else {**settled, "controls": controls_text(entries)}


def control_images(parameters: Mapping[str, Any], fields: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """For each ControlNet, the one of a row's image fields that it follows.

    It is that of its position, or `control_image` if the row has none there.
    """
    own = CONTROL_IMAGES[: len(controls_of(parameters))]
    return [field if field in fields else CONTROL_IMAGES[0] for field in own]
