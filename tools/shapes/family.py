"""The checkpoints' folders: the base is complete, and a sibling's folder has only what differs from it."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation, DPTImageProcessorPil

from tools.shapes import model_parts as parts
from tools.shapes.autoencoder import with_channels

BASE, LDM3D, DEPTH2IMG = "shapes", "shapes-ldm3d", "shapes-depth2img"
NIGHT, OUTLINE = "shapes-night", "shapes-outline"
UNCHECKED: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}

# Models of transformers are saved in float32: it loads a model in the stored dtype, and diffusers in float32.


def save_base(
    models: Path,
    deep_vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Save the base: an ordinary Stable Diffusion whose VAE is LDM3D's without the depth."""
    pipeline = StableDiffusionPipeline(
        vae=_half(with_channels(deep_vae, 3)),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=_half(unet),
        scheduler=parts.scheduler(),
        **UNCHECKED,
    )
    pipeline.save_pretrained(models / BASE, safe_serialization=True)


def save_ldm3d(models: Path, deep_vae: AutoencoderKL) -> None:
    """Save the part of the LDM3D-4c sibling that differs from the base: the VAE with a depth."""
    _half(deep_vae).save_pretrained(models / LDM3D / "vae")
    load_ldm3d(models).save_config(models / LDM3D)


def save_depth2img(models: Path, unet: UNet2DConditionModel, estimator: DPTForDepthEstimation) -> None:
    """Save the parts of the depth-to-image sibling: the UNet that gets a depth, and the depth estimator."""
    folder = models / DEPTH2IMG
    _half(unet).save_pretrained(folder / "unet")
    estimator.save_pretrained(folder / "depth_estimator")
    parts.depth_processor().save_pretrained(folder / "feature_extractor")
    load_depth2img(models).save_config(folder)


def save_lora(models: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Save a LoRA for the base's UNet in float16."""
    half = {name: weight.half() for name, weight in weights.items()}
    StableDiffusionPipeline.save_lora_weights(models / NIGHT, unet_lora_layers=half, safe_serialization=True)


def save_control_net(models: Path, net: ControlNetModel) -> None:
    """Save a ControlNet for the base in float16."""
    _half(net).save_pretrained(models / OUTLINE, safe_serialization=True)


def load_ldm3d(models: Path) -> StableDiffusionLDM3DPipeline:
    """The pipeline of the base with the VAE that has a depth."""
    own = {"vae": AutoencoderKL.from_pretrained(models / LDM3D / "vae", dtype=torch.float32)}
    return StableDiffusionLDM3DPipeline(**_base(models) | own, **UNCHECKED, image_encoder=None)


def load_depth2img(models: Path) -> StableDiffusionDepth2ImgPipeline:
    """The pipeline of the base with the UNet that gets a depth, and the depth estimator."""
    folder = models / DEPTH2IMG
    own = {
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32),
        "depth_estimator": DPTForDepthEstimation.from_pretrained(folder / "depth_estimator"),
        "feature_extractor": DPTImageProcessorPil.from_pretrained(folder / "feature_extractor"),
    }
    return StableDiffusionDepth2ImgPipeline(**_base(models) | own)


def _base(models: Path) -> dict[str, Any]:
    base = StableDiffusionPipeline.from_pretrained(models / BASE, dtype=torch.float32)
    return {name: getattr(base, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}


def _half(model: Any) -> Any:
    """A copy of the model in float16: the model itself may still be trained."""
    return copy.deepcopy(model).half()
