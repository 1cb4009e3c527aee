"""Small checkpoints with random weights, saved as diffusers saves the published ones.

With them, the demo and the tests run every path of the program without a download. They have the
published architectures and schedulers, at 64x64 pixels and a few megabytes. Their images are
colourful noise that depends on the prompt, the guidance and the seed.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionPipeline,
    StableDiffusionPipelineSafe,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from actors.engine.quirks.ldm3d_upscale import StableDiffusionUpscaleLDM3DPipeline
from demo import small_components
from demo.small_components import TEXT_WIDTH
from models.demo_cache import check_kind
from models.whole_folder import all_or_nothing
from schemas.errors import SpecError

Builder = Callable[[], DiffusionPipeline]
Components = dict[str, Any]

UNCHECKED: Components = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
NUM_NOISE_LEVELS, MAX_NOISE_LEVEL = 1000, 350
"""An upscaler's noise level is a class label. Only labels up to MAX_NOISE_LEVEL are allowed."""


def build_demo_model(folder: Path, kind: str = "sd", seed: int = 0) -> None:
    """Save a checkpoint of `kind` as `folder`, completely or not at all.

    The same versions and seed give byte-identical weights. Raises SpecError for an unknown kind
    and for a folder that is not empty.
    """
    check_kind(kind)
    with all_or_nothing(folder) as unfinished:
        _build(kind, seed).save_pretrained(unfinished, safe_serialization=True)


def _build(kind: str, seed: int) -> DiffusionPipeline:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return BUILDERS[kind]()


def _build_sd() -> DiffusionPipeline:
    """Stable Diffusion 1.5 without its safety checker."""
    return StableDiffusionPipeline(**_sd_components(), **UNCHECKED)


def _build_sd_safety() -> DiffusionPipeline:
    """Stable Diffusion 1.5 with its safety checker."""
    return StableDiffusionPipeline(
        **_sd_components(),
        safety_checker=small_components.safety_checker(),
        feature_extractor=small_components.feature_extractor(),
    )


def _build_sd_inpaint() -> DiffusionPipeline:
    """Stable Diffusion 1.5's inpainting: the UNet also sees the mask and the masked image."""
    components = _sd_components(in_channels=4 + 1 + 4) | {"scheduler": small_components.ddim_scheduler()}
    return StableDiffusionInpaintPipeline(**components, **UNCHECKED)


def _build_safe() -> DiffusionPipeline:
    """Safe Latent Diffusion without its safety checker.

    diffusers 0.42.1 refuses the published checkpoint's entry of the safety checker, because the class has
    moved to another module.
    """
    return StableDiffusionPipelineSafe(**_sd_components(), **UNCHECKED)


def _build_variation() -> DiffusionPipeline:
    """Image variations: an image's embedding replaces the prompt's."""
    return StableDiffusionImageVariationPipeline(
        vae=small_components.vae(scaling_factor=0.18215),
        image_encoder=small_components.image_encoder(),
        unet=small_components.unet(),
        scheduler=small_components.pndm_scheduler(),
        safety_checker=None,
        feature_extractor=small_components.feature_extractor(),
        requires_safety_checker=False,
    )


def _build_ldm3d() -> DiffusionPipeline:
    """LDM3D: the last three of the VAE's six channels are the depth."""
    return StableDiffusionLDM3DPipeline(**_sd_components(image_channels=6), **UNCHECKED, image_encoder=None)


def _build_ldm3d_4c() -> DiffusionPipeline:
    """LDM3D-4c: the last of the VAE's four channels is the depth."""
    return StableDiffusionLDM3DPipeline(**_sd_components(image_channels=4), **UNCHECKED, image_encoder=None)


def _build_ldm3d_upscale() -> DiffusionPipeline:
    """LDM3D-SR: the UNet also sees the latents of the small image and its depth map."""
    return StableDiffusionUpscaleLDM3DPipeline(
        **_sd_components(image_channels=4, in_channels=4 + 4, num_class_embeds=NUM_NOISE_LEVELS),
        low_res_scheduler=small_components.low_res_scheduler(),
        max_noise_level=MAX_NOISE_LEVEL,
    )


def _build_sd2() -> DiffusionPipeline:
    """Stable Diffusion 2.1 at 768 pixels."""
    return StableDiffusionPipeline(**_sd2_components(), **UNCHECKED)


def _build_depth2img() -> DiffusionPipeline:
    """Stable Diffusion 2's depth-to-image: the UNet also sees the depth map."""
    components = _sd2_components(in_channels=4 + 1) | {"scheduler": small_components.pndm_scheduler()}
    return StableDiffusionDepth2ImgPipeline(
        **components,
        depth_estimator=small_components.depth_estimator(),
        feature_extractor=small_components.depth_processor(),
    )


def _build_upscale() -> DiffusionPipeline:
    """The x4 upscaler: the UNet works at the size of the small image, which it also sees."""
    components = _sd2_components(
        sample_size=64,
        in_channels=4 + 3,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        # Self-attention at the larger sizes would take most of the time.
        only_cross_attention=(True, True, False),
        attention_head_dim=2,
        num_class_embeds=NUM_NOISE_LEVELS,
    )
    components |= {
        "vae": small_components.vae(scaling_factor=0.08333, widths=(16, 32, 32)),
        "scheduler": small_components.velocity_scheduler(beta_start=0.0001, beta_end=0.02),
    }
    return StableDiffusionUpscalePipeline(
        **components, low_res_scheduler=small_components.low_res_scheduler(), max_noise_level=MAX_NOISE_LEVEL
    )


def _build_latent_upscale() -> DiffusionPipeline:
    """The x2 latent upscaler: the UNet also sees the small latents. Its fifth output channel is not used."""
    tokenizer = small_components.tokenizer()
    noise_level_width = 128
    return StableDiffusionLatentUpscalePipeline(
        vae=small_components.vae(scaling_factor=0.18215),
        text_encoder=small_components.text_encoder(CLIPTextModel, tokenizer),
        tokenizer=tokenizer,
        unet=small_components.k_unet(in_channels=4 + 4, time_cond_proj_dim=noise_level_width + TEXT_WIDTH),
        scheduler=small_components.sample_scheduler(),
    )


def _build_sdxl() -> DiffusionPipeline:
    """Stable Diffusion XL base 1.0."""
    return StableDiffusionXLPipeline(
        **_sdxl_components(), force_zeros_for_empty_prompt=True, add_watermarker=False
    )


def _build_sdxl_inpaint() -> DiffusionPipeline:
    """Stable Diffusion XL's inpainting: the UNet also sees the mask and the masked image."""
    return StableDiffusionXLInpaintPipeline(
        **_sdxl_components(in_channels=4 + 1 + 4), force_zeros_for_empty_prompt=True, add_watermarker=False
    )


def _build_sdxl_refiner() -> DiffusionPipeline:
    """Stable Diffusion XL's refiner: one text encoder, and an aesthetic score instead of a target size."""
    tokenizer = small_components.tokenizer(pad_token="!")
    return StableDiffusionXLImg2ImgPipeline(
        vae=small_components.vae(scaling_factor=0.13025),
        text_encoder=None,
        text_encoder_2=small_components.text_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer=None,
        tokenizer_2=tokenizer,
        unet=small_components.unet(**_size_aware(num_time_ids=5)),
        scheduler=small_components.euler_scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


BUILDERS: dict[str, Builder] = {
    "sd": _build_sd,
    "sd-safety": _build_sd_safety,
    "sd-inpaint": _build_sd_inpaint,
    "sd2": _build_sd2,
    "depth2img": _build_depth2img,
    "variation": _build_variation,
    "safe": _build_safe,
    "sdxl": _build_sdxl,
    "sdxl-inpaint": _build_sdxl_inpaint,
    "sdxl-refiner": _build_sdxl_refiner,
    "upscale": _build_upscale,
    "latent-upscale": _build_latent_upscale,
    "ldm3d": _build_ldm3d,
    "ldm3d-4c": _build_ldm3d_4c,
    "ldm3d-upscale": _build_ldm3d_upscale,
}


def _sd_components(image_channels: int = 3, **unet: Any) -> Components:
    """The components of Stable Diffusion 1.5; `unet` is what differs in the UNet's configuration."""
    tokenizer = small_components.tokenizer()
    return {
        "vae": small_components.vae(scaling_factor=0.18215, channels=image_channels),
        "text_encoder": small_components.text_encoder(CLIPTextModel, tokenizer),
        "tokenizer": tokenizer,
        "unet": small_components.unet(**unet),
        "scheduler": small_components.pndm_scheduler(),
    }


def _sd2_components(**unet: Any) -> Components:
    """The components of Stable Diffusion 2; `unet` is what differs in the UNet's configuration.

    OpenCLIP reads the prompt, and the UNet's heads are equally wide at every level. The text encoder is
    published without its last layer, so it returns the output of the penultimate one.
    """
    tokenizer = small_components.tokenizer(pad_token="!")
    width = 48
    own = {"cross_attention_dim": width, "attention_head_dim": (4, 8), "use_linear_projection": True}
    return {
        "vae": small_components.vae(scaling_factor=0.18215),
        "text_encoder": small_components.text_encoder(
            CLIPTextModel, tokenizer, hidden_size=width, hidden_act="gelu"
        ),
        "tokenizer": tokenizer,
        "unet": small_components.unet(**own | unet),
        "scheduler": small_components.velocity_scheduler(),
    }


def _sdxl_components(**unet: Any) -> Components:
    """The components of Stable Diffusion XL base 1.0, with two text encoders; `unet` is as for the others."""
    tokenizer, tokenizer_2 = small_components.tokenizer(), small_components.tokenizer(pad_token="!")
    own = {"cross_attention_dim": 2 * TEXT_WIDTH, **_size_aware(num_time_ids=6)}
    return {
        "vae": small_components.vae(scaling_factor=0.13025),
        "text_encoder": small_components.text_encoder(CLIPTextModel, tokenizer),
        "text_encoder_2": small_components.text_encoder(CLIPTextModelWithProjection, tokenizer_2),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "unet": small_components.unet(**own | unet),
        "scheduler": small_components.euler_scheduler(),
    }


def _size_aware(num_time_ids: int) -> dict[str, Any]:
    """The configuration of a UNet that also sees the pooled prompt and `num_time_ids` sizes and scores."""
    time_width = 8
    return {
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time_width,
        "projection_class_embeddings_input_dim": TEXT_WIDTH + num_time_ids * time_width,
    }


def main(seed: str, *targets: str) -> int:
    """Build checkpoints and return the exit code; `targets` are kinds and folders in turn.

    An error of the caller is one line on standard error.
    """
    code = 0
    for kind, folder in zip(targets[::2], targets[1::2], strict=True):
        try:
            build_demo_model(Path(folder), kind, int(seed))
        except SpecError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
