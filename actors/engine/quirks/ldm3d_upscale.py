"""The LDM3D upscaler, which redraws an image and its depth map together in a larger size.

diffusers 0.42.1 has it only as a community example: code that is downloaded when a checkpoint is loaded. This
pipeline is built from diffusers' own parts, under the name that such checkpoints (Intel/ldm3d-sr) give their
pipeline.
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
from schemas.wording.amounts import counted

Generators = torch.Generator | list[torch.Generator]


@dataclass(frozen=True, slots=True, kw_only=True)
class LDM3DUpscaleOutput:
    """The return value of a call of the pipeline."""

    images: Any
    """pt: (N, 3, height, width) in [0, 1]; np: (N, height, width, 3); pil: a list of RGB images."""
    depth: Any
    """pt and np: (N, height, width) in [0, 1]; pil: a list of 16-bit images."""
    nsfw_content_detected: list[bool] | None
    """For each row whether the safety checker flags it; None without a checker."""


class StableDiffusionUpscaleLDM3DPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """Upscales RGB and depth with a VAE of 4 channels and a UNet of 8 channels."""

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
            # Every checkpoint has one, but the published pipeline adds no noise with it: it only passes the
            # noise level to the UNet.
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
    def row_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of rows, renamed to those of the published pipeline."""
        arguments["target_res"] = (arguments.pop("height"), arguments.pop("width"))
        # It is None if the prompts are encoded already.
        arguments.setdefault("prompt", None)
        return arguments | {"rgb": arguments.pop("image"), "depth": arguments.pop("depth_map")}

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
        """Redraw each image and its depth map in the size `target_res`, a height and a width.

        Depth maps are 16-bit ("I;16", "I") or 8-bit; the full range of both is the model's. A list of
        generators has one for each row; a row's result then does not depend on the other rows. If prompts are
        passed encoded, `prompt` is None. ValueError for arguments that do not fit each other or the
        checkpoint.
        """
        images, maps = _listed(rgb), _listed(depth)
        num_prompts = len(_listed(prompt)) if prompt_embeds is None else len(prompt_embeds)
        self._check(num_prompts, images, maps, target_res, noise_level, output_type)
        device = self._execution_device
        # The published pipeline intends this too: Stable Diffusion's VAEs can overflow in float16.
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.to(torch.float32)
        guided = guidance_scale > 1
        text, unguided_text = self.encode_prompt(
            *(prompt, device, 1, guided, negative_prompt, prompt_embeds, negative_prompt_embeds),
            clip_skip=clip_skip,
        )
        timesteps, _ = retrieve_timesteps(self.scheduler, num_inference_steps, device)

        low_res = self._encode(_rgbd(images, maps, target_res), generator).to(text.dtype)
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
            unet_input = torch.cat([noisy, torch.cat([low_res] * branches)], dim=1)
            noise = self.unet(unet_input, timestep, **conditions, return_dict=False)[0]
            if guided:
                unguided_noise, text_noise = noise.chunk(2)
                noise = unguided_noise + guidance_scale * (text_noise - unguided_noise)
            latents = self.scheduler.step(noise, timestep, latents, **step_arguments, return_dict=False)[0]

        return self._decode(latents, text.dtype, output_type)

    def _check(
        self,
        num_prompts: int,
        images: list[Image.Image],
        maps: list[Image.Image],
        target_res: Sequence[int],
        noise_level: int,
        output_type: str,
    ) -> None:
        if not num_prompts == len(images) == len(maps):
            raise ValueError(
                "each row needs a prompt, an rgb image and a depth image; "
                f"got {counted(num_prompts, 'prompt')}, {counted(len(images), 'rgb image')} and "
                f"{counted(len(maps), 'depth image')}"
            )
        if any(side <= 0 or side % self.vae_scale_factor for side in target_res):
            raise ValueError(
                f"target_res must be a height and a width in multiples of {self.vae_scale_factor}, "
                f"not {tuple(target_res)}"
            )
        if not 0 <= noise_level <= self.config.max_noise_level:
            raise ValueError(
                f"noise_level must be from 0 to {self.config.max_noise_level}, not {noise_level}"
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}")

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


def _rgbd(images: list[Image.Image], maps: list[Image.Image], target_res: Sequence[int]) -> torch.Tensor:
    """Images and depth maps of any size, resized and joined to (N, 4, height, width) in [-1, 1].

    The published pipeline asks for bilinear resizing, but the image processor of diffusers 0.42.1 ignores
    that and uses its default, Lanczos.
    """
    height, width = target_res
    processor = VaeImageProcessor(resample="lanczos", do_convert_rgb=True)
    rgb = processor.preprocess(images, height, width)
    depth = torch.stack([_depth_values(depth_map, height, width) for depth_map in maps])
    return torch.cat([rgb, processor.normalize(depth)], dim=1)


def _depth_values(depth_map: Image.Image, height: int, width: int) -> torch.Tensor:
    """The depth map, resized to (1, height, width) in [0, 1]."""
    if depth_map.mode.startswith("I"):
        levels = np.asarray(depth_map).clip(0, MAX_DEPTH)
    else:
        # diffusers 0.42.1 divides 8-bit depths by 65535 too, so that they are almost 0.
        levels = np.asarray(depth_map.convert("L")) * np.uint16(MAX_DEPTH // 255)
    resized = Image.fromarray(levels.astype(np.uint16)).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32))[None] / MAX_DEPTH
