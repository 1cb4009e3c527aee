"""Small checkpoints with random weights, saved as diffusers saves the published ones.

The demo and the tests run every path of the program on them without a download. They keep the
published architectures and schedulers, at 64x64 pixels and a few megabytes, and draw colourful
noise that follows the prompt, the guidance and the seed.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention import BasicTransformerBlock
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
)

from actors.demo_cache import check_kind
from schemas.errors import SpecError

Builder = Callable[[], DiffusionPipeline]

LATENT_SIZE = 8
TEXT_WIDTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
# A few of English's commonest, so that a sentence stays within the 77 tokens.
PAIRS = (
    "t+h th+e</w> i+n in+g</w> e+r</w> e+r a+n an+d</w> o+f</w> o+n a+t a+r r+e o+r e+s</w> e+d</w> l+i s+t"
)
MERGES = [tuple(pair.split("+")) for pair in PAIRS.split()]


def build_demo_model(folder: Path, kind: str = "sd", seed: int = 0) -> None:
    """Save a checkpoint of `kind` as `folder`, which is either whole or not there.

    The same versions and seed give byte-identical weights. Raises SpecError for an unknown kind
    and for a folder that has something in it.
    """
    check_kind(kind)
    _refuse_used(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        unfinished = Path(scratch) / "checkpoint"
        _build(kind, seed).save_pretrained(unfinished, safe_serialization=True)
        try:
            os.rename(unfinished, folder)
        except OSError:
            _refuse_used(folder)
            raise


def _refuse_used(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder} is there already; name a new folder for the demo checkpoint")


def _build(kind: str, seed: int) -> DiffusionPipeline:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return BUILDERS[kind]()


def _build_sd() -> DiffusionPipeline:
    """Stable Diffusion 1.5's parts and scheduler."""
    tokenizer = _tokenizer()
    return StableDiffusionPipeline(
        vae=_vae(scaling_factor=0.18215),
        text_encoder=_text_encoder(CLIPTextModel, tokenizer),
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=_sd_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _build_sdxl() -> DiffusionPipeline:
    """Stable Diffusion XL base 1.0's parts and scheduler."""
    tokenizer, tokenizer_2 = _tokenizer(), _tokenizer(pad_token="!")
    num_time_ids, time_width = 6, 8
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=_text_encoder(CLIPTextModel, tokenizer),
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection, tokenizer_2),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=_unet(
            cross_attention_dim=2 * TEXT_WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=TEXT_WIDTH + num_time_ids * time_width,
        ),
        scheduler=_sdxl_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


BUILDERS: dict[str, Builder] = {"sd": _build_sd, "sdxl": _build_sdxl}


def _sd_scheduler() -> PNDMScheduler:
    return PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _sdxl_scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


def _unet(**changes: Any) -> UNet2DConditionModel:
    """A UNet for 8x8 latents; `changes` are its configuration's keys."""
    config: dict[str, Any] = {
        "sample_size": LATENT_SIZE,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 16,
    }
    return _heed_prompts(UNet2DConditionModel(**config | changes))


def _heed_prompts(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Let a prompt move the picture about as far as a seed does; fresh weights all but ignore it."""
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            block.attn2.to_q.weight.mul_(10)
            block.attn2.to_out[0].weight.mul_(4)
    unet.conv_out.weight.mul_(3)
    return unet


def _vae(scaling_factor: float, channels: int = 3) -> AutoencoderKL:
    """A VAE of factor 8."""
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=4,
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=8 * LATENT_SIZE,
        scaling_factor=scaling_factor,
    )
    return _vary_widely(vae)


def _vary_widely(vae: AutoencoderKL) -> AutoencoderKL:
    """Give pixels a wide spread, and latents unit spread once scaled, with next to no noise."""
    means, log_variances = slice(0, 4), slice(4, 8)
    vae.decoder.conv_out.weight.mul_(1.3)
    vae.quant_conv.weight[means].mul_(4.5 / vae.config.scaling_factor)
    vae.quant_conv.weight[log_variances].zero_()
    vae.quant_conv.bias[log_variances].fill_(-8)
    return vae


def _text_encoder(architecture: type[PreTrainedModel], tokenizer: CLIPTokenizer) -> PreTrainedModel:
    """A text encoder whose attention is sharp, so that single words count."""
    encoder = architecture(_text_config(tokenizer))
    for name, weight in encoder.named_parameters():
        if name.endswith("q_proj.weight"):
            weight.mul_(10)
    return encoder


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """A CLIP tokenizer over all 256 bytes, so that every prompt in every language has tokens."""
    letters = sorted(ByteLevel.alphabet())
    words = letters + [f"{letter}</w>" for letter in letters]
    words += [left + right for left, right in MERGES] + [START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=MERGES,
        pad_token=pad_token,
        model_max_length=77,
    )


def main(folder: str, kind: str, seed: str) -> int:
    """Build one checkpoint; a fault of the caller's is one line on standard error."""
    try:
        build_demo_model(Path(folder), kind, int(seed))
    except SpecError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
