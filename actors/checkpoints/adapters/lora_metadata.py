"""peft's configuration of a LoRA, which diffusers writes into the header of a file beside the tensors."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from actors.checkpoints.adapters.lora_layers import LoraLayer

KEY = "lora_adapter_metadata"
"""The key of the configuration in the header's metadata (diffusers 0.42.1)."""
_DEFAULT = 8
"""peft's own `r` and `lora_alpha` (0.21.2)."""
_UNFIT = {
    "use_dora": "magnitudes, which cannot differ by row in a batch",
    "lora_bias": "biases, which cannot differ by row in a batch",
    "modules_to_save": "whole layers beside the LoRA, which diffusers does not load",
}
"""What a LoRA has that sets one of these."""


def check_metadata(metadata: Mapping[str, str], changed: Sequence[LoraLayer], *, has_alphas: bool) -> None:
    """Raise ValueError if diffusers would fail on the configuration in a header.

    `changed`: the layers that the file changes; `has_alphas`: it has tensors that say the alphas.
    """
    try:
        config = json.loads(metadata.get(KEY) or "null")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{KEY} in its header is not JSON ({error}); {_WAY_OUT}") from error
    if config is None:
        return
    if not isinstance(config, dict):
        raise ValueError(f"{KEY} in its header is not a JSON object; {_WAY_OUT}")
    if has_alphas:
        raise ValueError(f"it has alphas, and {KEY} in its header, of which diffusers takes one; {_WAY_OUT}")
    for component in dict.fromkeys(layer.component for layer in changed if layer.component):
        start = f"{component}."
        own = {key.removeprefix(start): value for key, value in config.items() if key.startswith(start)}
        ranks = {layer.down[0] for layer in changed if layer.component == component}
        if problem := _problem(own, ranks):
            raise ValueError(f"{KEY} in its header {problem} ({component}); {_WAY_OUT}")


_WAY_OUT = (
    f"save the LoRA again with the pipeline's `save_lora_weights`, or save its tensors alone, without {KEY}"
)


def _problem(config: Mapping[str, Any], ranks: set[int]) -> str:
    """What is wrong with the configuration of a component whose layers have these ranks; else empty."""
    rank, alpha = config.get("r", _DEFAULT), config.get("lora_alpha", _DEFAULT)
    targets = config.get("target_modules")
    patterns = [config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
    if not targets or not isinstance(targets, (str, list)):
        return "has no target_modules"
    if type(rank) is not int or rank < 1:
        return f"has r {rank!r:.40}, which is not a whole number from 1 up"
    if type(alpha) not in (int, float):
        return f"has lora_alpha {alpha!r:.40}, which is not a number"
    if not all(isinstance(each, dict) and _are_numbers(each.values()) for each in patterns):
        return "has a rank_pattern or alpha_pattern that is not numbers by layer"
    if other := ranks - {rank, *patterns[0].values()}:
        return f"has r {rank}, and the file a layer of rank {min(other)}"
    return next((f"says that it has {what}" for key, what in _UNFIT.items() if config.get(key)), "")


def _are_numbers(values: Any) -> bool:
    return all(type(value) in (int, float) for value in values)
