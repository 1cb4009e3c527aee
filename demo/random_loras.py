"""LoRAs of random weights for the small checkpoints, saved as diffusers saves them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("proj_in", "conv1", "conv2", "conv", "conv_shortcut")
TEXT = ("q_proj", "v_proj")


def plain_pipeline(checkpoint: Path, cls: str = "DiffusionPipeline") -> Any:
    """The checkpoint's pipeline in diffusers, without a safety checker."""
    loader: type[DiffusionPipeline] = getattr(diffusers, cls)
    pipeline = loader.from_pretrained(checkpoint, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_lora(
    file: Path,
    checkpoint: Path,
    *,
    seed: int,
    rank: int = 4,
    alpha: float = 4,
    layers: Sequence[str] = ATTENTION,
    text: Sequence[str] = (),
) -> Path:
    """Save a LoRA of random weights as diffusers saves one, and return its file.

    `layers` are those of the UNet, and `text` those of each text encoder.
    """
    pipeline = plain_pipeline(checkpoint)
    torch.manual_seed(seed)

    def weights_of(component: str, targets: Sequence[str]) -> Mapping[str, torch.Tensor] | None:
        module = getattr(pipeline, component, None)
        if module is None or not targets:
            return None
        module.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=[*targets], init_lora_weights=False)
        )
        weights = get_peft_model_state_dict(module)
        return {name: 0.5 * weight for name, weight in weights.items()}

    arguments = {
        "unet_lora_layers": weights_of("unet", layers),
        "text_encoder_lora_layers": weights_of("text_encoder", text),
    }
    if hasattr(pipeline, "text_encoder_2"):
        arguments["text_encoder_2_lora_layers"] = weights_of("text_encoder_2", text)
    pipeline.save_lora_weights(file.parent, weight_name=file.name, **arguments)
    return file
