"""LoRAs of random weights for the small checkpoints, saved as diffusers saves them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("proj_in", "conv1", "conv2", "conv", "conv_shortcut")
TEXT = ("q_proj", "v_proj", "out_proj")


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
    kohya: bool = False,
) -> Path:
    """Save a LoRA of random weights, and return its file.

    `layers` are those of the UNet, and `text` those of each text encoder. `kohya`: with the names that
    kohya's trainer gives to tensors, not with those of diffusers.
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
    if kohya:
        save_file(
            _kohya_names(load_file(file), alpha, two_encoders="text_encoder_2" in pipeline.components), file
        )
    return file


def _kohya_names(
    weights: Mapping[str, torch.Tensor], alpha: float, *, two_encoders: bool
) -> dict[str, torch.Tensor]:
    """The same weights as kohya's trainer saves them: each layer with its own alpha."""
    prefixes = {
        "unet": "lora_unet",
        "text_encoder": "lora_te1" if two_encoders else "lora_te",
        "text_encoder_2": "lora_te2",
    }
    named = {}
    for key, weight in weights.items():
        component, _, path = key.partition(".")
        layer, _, matrix = path.rpartition(".lora_" if ".lora_" in path else ".lora.")
        # transformers 5 no longer has the `text_model` of the names that trainers save.
        inner = layer if component == "unet" or layer.startswith("text_model.") else f"text_model.{layer}"
        name = f"{prefixes[component]}_{inner.replace('.', '_')}"
        named[f"{name}.lora_{'down' if matrix[0] in 'Ad' else 'up'}.weight"] = weight
        named[f"{name}.alpha"] = torch.tensor(float(alpha))
    return named
