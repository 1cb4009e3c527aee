"""Stable Diffusion 1.5 and XL in their published sizes, with random weights.

They are as fast as the published models.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo import random_checkpoints
from demo import small_components as parts

# Values of the published config.json files that differ from the class defaults (diffusers 0.42.1).
SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768}
"""859,520,964 weights."""
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""2,567,463,684 weights."""
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
"""83,653,863 weights; both models have this VAE."""
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
"""123,060,480 weights."""
OPENCLIP_BIGG = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
"""694,659,840 weights."""
VOCABULARY = 49408
"""Rows of the published embedding tables; the demo's tokenizer uses only the first rows."""


def full_size_pipeline(name: str, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """`sd15` or `sdxl`, built on the device."""
    torch.manual_seed(0)
    with torch.no_grad():
        return BUILDERS[name](device).to(dtype=dtype)


def tiny_pipeline(kind: str, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """The demo's small model of this kind."""
    torch.manual_seed(0)
    with torch.no_grad():
        return random_checkpoints.BUILDERS[kind]().to(device, dtype)


def _sd15(device: torch.device) -> DiffusionPipeline:
    tokenizer = parts.tokenizer()
    with device:
        modules = {
            "vae": AutoencoderKL(**VAE, sample_size=512),
            "text_encoder": _text_encoder(CLIPTextModel, tokenizer, CLIP_L),
            "unet": UNet2DConditionModel(**SD15_UNET),
        }
    return StableDiffusionPipeline(
        **modules,
        tokenizer=tokenizer,
        scheduler=parts.pndm_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(device: torch.device) -> DiffusionPipeline:
    tokenizer, tokenizer_2 = parts.tokenizer(), parts.tokenizer(pad_token="!")
    with device:
        modules = {
            "vae": AutoencoderKL(**VAE, sample_size=1024, scaling_factor=0.13025, force_upcast=True),
            "text_encoder": _text_encoder(CLIPTextModel, tokenizer, CLIP_L),
            "text_encoder_2": _text_encoder(CLIPTextModelWithProjection, tokenizer_2, OPENCLIP_BIGG),
            "unet": UNet2DConditionModel(**SDXL_UNET),
        }
    return StableDiffusionXLPipeline(
        **modules,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=parts.euler_scheduler(),
        add_watermarker=False,
    )


BUILDERS = {"sd15": _sd15, "sdxl": _sdxl}


def _text_encoder(architecture: type[Any], tokenizer: CLIPTokenizer, sizes: dict[str, Any]) -> Any:
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return architecture(CLIPTextConfig(vocab_size=VOCABULARY, **sizes, **tokens))
