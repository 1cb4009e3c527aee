"""The LDM3D upscaler: a picture and its depth map, redrawn larger together.

diffusers has it as a community example only, code that would be fetched when a checkpoint is loaded. This is
written on diffusers' own parts, under the name that such checkpoints (Intel/ldm3d-sr) give their pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer

from actors.engine.quirks.clip_skip import enable_clip_skip
from actors.engine.quirks.ldm3d import MAX_DEPTH, OUTPUT_TYPES, LDM3DImageProcessor

Generators = torch.Generator | list[torch.Generator]


@dataclass(frozen=True, slots=True, kw_only=True)
class LDM3DUpscaleOutput:
    """What a call of the pipeline gives."""

    images: Any
    """pt: (N, 3, height, width) in [0, 1]; np: (N, height, width, 3); pil: a list of RGB images."""
    depth: Any
    """pt and np: (N, height, width) in [0, 1]; pil: a list of 16-bit images."""
    nsfw_content_detected: list[bool] | None
    """The safety checker's word on each row; None without one."""


class StableDiffusionUpscaleLDM3DPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """Upscales RGB and depth on a VAE of 4 channels and a UNet of 8."""

    _optional_components: ClassVar = ["safety_checker", "feature_extractor", "watermarker"]

    encode_prompt = StableDiffusionPipeline.encode_prompt
    prepare_extra_step_kwargs = StableDiffusionPipeline.prepare_extra_step_kwargs
    run_safety_checker = StableDiffusionLDM3DPipeline.run_safety_checker

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        low_res_scheduler: DDPMScheduler,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        watermarker: Any | None = None,
        max_noise_level: int = 350,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            # Part of every checkpoint, but the published pipeline adds no noise with it: the noise level is
            # only what the UNet is told.
            low_res_scheduler=low_res_scheduler,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            watermarker=watermarker,
        )
        self.register_to_config(max_noise_level=max_noise_level)
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_processor = LDM3DImageProcessor()
        enable_clip_skip(text_encoder)

    @staticmethod
    def row_arguments(found: dict[str, Any]) -> dict[str, Any]:
        """What rows have, by the names that the published pipeline gives to its arguments."""
        found["target_res"] = (found.pop("height"), found.pop("width"))
        # None where it is encoded already.
        found.setdefault("prompt", None)
        return found | {"rgb": found.pop("image"), "depth": found.pop("depth_map")}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None,
        rgb: Image.Image | list[Image.Image],
        depth: Image.Image | list[Image.Image],
        num_inference_steps: int = 75,
        guidance_scale: float = 9.0,
        noise_level: int = 20,
        negative_prompt: str | list[str] | None = None,
        *,
        target_res: Sequence[int] = (1024, 1024),
        generator: Generators | None = None,
        eta: float = 0.0,
        clip_skip: int | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
    ) -> LDM3DUpscaleOutput:
        """Redraw each picture and its depth map at `target_res`, a height and a width.

        Depth maps are 16-bit ("I;16", "I") or 8-bit; either's full range is the model's. A list of generators
        has one for each row, and a row is then the same whatever its company. Prompts may come encoded, with
        None for `prompt`. ValueError for arguments that do not fit each other or the checkpoint.
        """
        pictures, maps = _listed(rgb), _listed(depth)
        num_prompts = len(_listed(prompt)) if prompt_embeds is None else len(prompt_embeds)
        self._check(num_prompts, pictures, maps, target_res, noise_level, output_type)
        device = self._execution_device
        # As the published pipeline meant to: Stable Diffusion's VAEs can overflow in float16.
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.to(torch.float32)
        guided = guidance_scale > 1
        text, unguided_text = self.encode_prompt(
            *(prompt, device, 1, guided, negative_prompt, prompt_embeds, negative_prompt_embeds),
            clip_skip=clip_skip,
        )
        timesteps, _ = retrieve_timesteps(self.scheduler, num_inference_steps, device)

        low_res = self._encode(_rgbd(pictures, maps, target_res), generator).to(text.dtype)
        latents = randn_tensor(low_res.shape, generator=generator, device=device, dtype=text.dtype)
        latents = latents * self.scheduler.init_noise_sigma
        branches = 2 if guided else 1
        conditions = {
            "encoder_hidden_states": torch.cat([unguided_text, text]) if guided else text,
            "class_labels": torch.full((branches * len(latents),), noise_level, device=device),
        }
        step_arguments = self.prepare_extra_step_kwargs(generator, eta)
        for timestep in self.progress_bar(timesteps):
            noisy = self.scheduler.scale_model_input(torch.cat([latents] * branches), timestep)
            seen = torch.cat([noisy, torch.cat([low_res] * branches)], dim=1)
            noise = self.unet(seen, timestep, **conditions, return_dict=False)[0]
            if guided:
                without, with_text = noise.chunk(2)
                noise = without + guidance_scale * (with_text - without)
            latents = self.scheduler.step(noise, timestep, latents, **step_arguments, return_dict=False)[0]

        return self._decode(latents, text.dtype, output_type)

    def _check(
        self,
        num_prompts: int,
        pictures: list[Image.Image],
        maps: list[Image.Image],
        target_res: Sequence[int],
        noise_level: int,
        output_type: str,
    ) -> None:
        if not num_prompts == len(pictures) == len(maps):
            raise ValueError(
                f"each row has a prompt, an rgb and a depth image; got {num_prompts} prompts, "
                f"{len(pictures)} rgb and {len(maps)} depth images"
            )
        if any(side <= 0 or side % self.vae_scale_factor for side in target_res):
            raise ValueError(
                f"target_res is a height and a width in multiples of {self.vae_scale_factor}, "
                f"not {tuple(target_res)}"
            )
        if not 0 <= noise_level <= self.config.max_noise_level:
            raise ValueError(f"noise_level is from 0 to {self.config.max_noise_level}, not {noise_level}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}")

    def _encode(self, rgbd: torch.Tensor, generator: Generators | None) -> torch.Tensor:
        rgbd = rgbd.to(self.vae.device, _weights_dtype(self.vae))
        latents: torch.Tensor = self.vae.encode(rgbd).latent_dist.sample(generator)
        latents *= self.vae.config.scaling_factor
        return latents

    def _decode(self, latents: torch.Tensor, dtype: torch.dtype, output_type: str) -> LDM3DUpscaleOutput:
        latents = latents.to(_weights_dtype(self.vae)) / self.vae.config.scaling_factor
        decoded = self.vae.decode(latents, return_dict=False)[0]
        decoded, flags = self.run_safety_checker(decoded, latents.device, dtype)
        images, depth = self.image_processor.postprocess(
            decoded, output_type, [not flag for flag in flags] if flags else None
        )
        if output_type == "pil" and self.watermarker is not None:
            images = self.watermarker.apply_watermark(images)
        return LDM3DUpscaleOutput(images=images, depth=depth, nsfw_content_detected=flags)


def _weights_dtype(module: torch.nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _rgbd(pictures: list[Image.Image], maps: list[Image.Image], target_res: Sequence[int]) -> torch.Tensor:
    """(N, 4, height, width) in [-1, 1], whatever sizes the images have.

    The published pipeline asks for bilinear resizing, but the image processor of diffusers 0.42.1
    forgets that and takes its default, Lanczos.
    """
    height, width = target_res
    processor = VaeImageProcessor(resample="lanczos", do_convert_rgb=True)
    rgb = processor.preprocess(pictures, height, width)
    depth = torch.stack([_depth_values(picture, height, width) for picture in maps])
    return torch.cat([rgb, processor.normalize(depth)], dim=1)


def _depth_values(picture: Image.Image, height: int, width: int) -> torch.Tensor:
    """(1, height, width) in [0, 1]."""
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).clip(0, MAX_DEPTH)
    else:
        # diffusers 0.42.1 divides 8-bit depths by 65535 too, which leaves them all but black.
        levels = np.asarray(picture.convert("L")) * np.uint16(MAX_DEPTH // 255)
    resized = Image.fromarray(levels.astype(np.uint16)).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32))[None] / MAX_DEPTH
