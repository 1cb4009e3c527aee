"""The weights with which a row applies adapters, such as LoRAs, by the adapters' names."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from schemas.systems.schedulers import parse_options, shown
from schemas.wording.nearest import did_you_mean
from schemas.wording.printable import listed, shortened

MAX_ADAPTERS = 16
"""The most adapters of one row: 16 LoRAs of rank 64 are together as wide as most layers that they change."""
MAX_WEIGHT = 10.0
"""The greatest weight, and, with a minus sign, the least. LoRAs are made for weights about 1, and those that
work as sliders for a few more. Beyond that images are noise, and the weight is perhaps 80 for 0.8."""
NO_WEIGHTS = "{}"
"""The text of no adapters at all."""


def unknown_adapter(kind: str, name: str, model: str, declared: Collection[str]) -> str:
    """What is wrong with a name that a row or a route has for an adapter; empty for a declared one.

    `kind`: what the adapter is, such as `LoRA`; `declared`: the names that the model gives to its own.
    """
    if name in declared:
        return ""
    names = listed([*declared])
    hint = did_you_mean(name, declared) or (f"; it has {names}" if names else " and no others")
    return f"model `{shortened(model)}` has no {kind} `{shown(name)}`{hint}"


def checked_weights(weights: Mapping[str, Any]) -> dict[str, float]:
    """The weights by name, sorted, without those of 0; ValueError says which of them is not allowed."""
    for name, weight in weights.items():
        # Python counts booleans as whole numbers.
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ValueError(f"the weight of `{shown(name)}` is {shown(weight)}, which is not a number")
        if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:
            raise ValueError(
                f"the weight of `{shown(name)}` is {shown(weight)}; it must be a number from {-MAX_WEIGHT:g} "
                f"to {MAX_WEIGHT:g}"
            )
    applied = {name: float(weights[name]) for name in sorted(weights) if weights[name]}
    if len(applied) > MAX_ADAPTERS:
        raise ValueError(f"it has {len(applied):,} of them; a row can have at most {MAX_ADAPTERS}")
    return applied


def parse_weights(text: str) -> dict[str, float]:
    """The weights in a JSON text such as `{"chalk": 0.8}`, sorted by name, without nulls and those of 0.

    An empty text has none. ValueError says what is wrong with the text, or which weight is not allowed.
    """
    return checked_weights(parse_options(text or NO_WEIGHTS, example='{"chalk": 0.8}'))


def weights_text(weights: Mapping[str, float]) -> str:
    """The JSON text of the weights, in a form in which equal weights have equal texts."""
    return json.dumps(checked_weights(weights), separators=(",", ":"))
