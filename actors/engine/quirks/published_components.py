"""Components of published checkpoints whose classes diffusers 0.42.1 or transformers 5 cannot load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.utils.deprecation_utils import _TRANSFORMERS_CLASS_REMAPPING

# Published depth-to-image checkpoints name DPTFeatureExtractor, which transformers 5 no longer has. diffusers
# 0.42.1 replaces such classes by a table, in which only CLIP's is; so the depth estimator's is added here.
_TRANSFORMERS_CLASS_REMAPPING["DPTFeatureExtractor"] = {
    "new_class": "DPTImageProcessorPil",
    "transformers_version": (">=", "5.0"),
}


def omitted_components(index: Mapping[str, Any]) -> dict[str, Any]:
    """None for each component whose published class does not load (diffusers 0.42.1 with transformers 5)."""
    return {"safety_checker": None} if has_safe_checker(index) else {}


def has_safe_checker(index: Mapping[str, Any]) -> bool:
    """Whether the checkpoint has Safe's own checker.

    diffusers 0.42.1 has moved the checker's class, which does not load with transformers 5 either.
    """
    _, name = index.get("safety_checker") or (None, None)
    return bool(name == "SafeStableDiffusionSafetyChecker")


def checker_with_safes_weights(
    folder: Path, *, variant: str | None, dtype: torch.dtype, use_safetensors: bool | None
) -> Any:
    """Stable Diffusion's checker with the weights of Safe's: the networks are the same, but Safe's checker
    does not blacken images."""
    return StableDiffusionSafetyChecker.from_pretrained(
        folder,
        subfolder="safety_checker",
        variant=variant,
        dtype=dtype,
        use_safetensors=use_safetensors,
    )
