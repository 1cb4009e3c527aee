"""Members of diffusers' pipeline classes that are replaced, because they cost time or warn."""

from collections.abc import Mapping
from typing import Any

import torch


def with_overrides(cls: Any, device: torch.device, components: Mapping[str, Any]) -> Any:
    """A subclass of the pipeline class that works around three faults of diffusers 0.42.1.

    - `_execution_device` and `device` walk through every module's hooks each time a pipeline asks for its
      device. For a small model that costs as much as all scheduler steps of a call. Here they are constants.
    - `maybe_convert_prompt` tokenizes each prompt once more, to look for learned tokens of several vectors.
      It is replaced if the tokenizers have none.
    - `upcast_vae` warns that it is deprecated. It is replaced, since float32_vae.py has done its work.
    """
    members = {"_execution_device": device, "device": device, "upcast_vae": _keep_dtype}
    if not any(map(has_long_tokens, components.values())):
        members["maybe_convert_prompt"] = _unchanged_prompt
    return type(cls.__name__, (cls,), members)


def has_long_tokens(component: Any) -> bool:
    """Whether the component is a tokenizer with a learned token of several vectors.

    Textual inversion adds `<cat>_1`, `<cat>_2` and so on for such a token `<cat>`.
    """
    added = getattr(component, "added_tokens_encoder", {})
    return any(f"{token}_1" in added for token in added)


def _unchanged_prompt(_: Any, prompt: Any, tokenizer: Any) -> Any:
    """Replaces `maybe_convert_prompt`."""
    return prompt


def _keep_dtype(_: Any) -> None:
    """Replaces `upcast_vae`."""
