"""The names of values, of which the ids of a sweep's rows are made: `a-red-circle.g7.5.seed2`."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

MAX_NAME = 40
"""The longest name of one value, in characters."""
_SHORT_LABELS = {
    "guidance_scale": "g",
    "num_inference_steps": "steps",
    "width": "w",
    "height": "h",
    "num_images_per_prompt": "n",
    "controlnet_conditioning_scale": "control",
    "ip_adapter_scale": "ip",
}
_SEPARATORS = re.compile(r"(?:(?<!\d)\.|\.(?!\d)|[^\w.]|_)+")
"""What is between two words. A point between digits belongs to a number."""


def value_names(field: str, values: Iterable[Any]) -> list[str]:
    """A name for each of a field's values: equal values have the same, and different values different ones.

    A value that is added at the end changes no name.
    """
    values_by_name: dict[str, str] = {}
    names = []
    for value in values:
        exact = json.dumps(value, sort_keys=True)
        name = _name(field, value)
        if values_by_name.setdefault(name, exact) != exact:
            name = _hashed(name, exact)
            values_by_name[name] = exact
        names.append(name)
    return names


def slug(text: str) -> str:
    """The text in lower case, with a dash for whatever is neither a letter nor a digit."""
    return _SEPARATORS.sub("-", text.lower()).strip("-")


def shortened_slug(text: str, max_length: int) -> str:
    """The first words of the text's slug, of at most `max_length` characters."""
    whole = slug(text)
    if len(whole) <= max_length:
        return whole
    words = whole[: max_length + 1].rpartition("-")[0]
    return (words or whole[:max_length]).strip("-.")


def _name(field: str, value: Any) -> str:
    label = _SHORT_LABELS.get(field, slug(field))
    if value in (None, "", {}, []):
        return f"no-{label}"
    if isinstance(value, bool):
        return f"{label}-{str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"{label}{_number(value)}"
    text = value if isinstance(value, str) else _pairs(value)
    whole = slug(text)
    name = whole if len(whole) <= MAX_NAME else _hashed(shortened_slug(text, MAX_NAME - 7), text)
    # A name that began with a digit could be taken for the rest of a number before it.
    return name if name[:1].isalpha() else f"{label}{name}" if name else _hashed(label, text)


def _pairs(value: Any) -> str:
    """A mapping without the signs of JSON: `chalk0.8-ink1`."""
    if isinstance(value, dict):
        return " ".join(f"{key}{_pairs(inner)}" for key, inner in value.items())
    return _number(value) if type(value) in (int, float) else json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def _hashed(name: str, exact: str) -> str:
    return f"{name}-{hashlib.sha256(exact.encode()).hexdigest()[:6]}"
