"""From one step of a chain to the next: the picture stays on the worker."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from actors.engine.engine import Generated
from actors.engine.samples import MadeImage
from actors.images.encoding import Pixels


def made_images(generated: Generated) -> dict[str, MadeImage]:
    """What a step gave, by the field of the next step that it fills."""
    if generated.latents is not None:
        height, width = generated.latents.shape[-2:]
        return {"image": MadeImage(picture=generated.latents, width=width, height=height)}
    assert generated.pixels is not None, "a step that failed has no next one"
    made = {"image": _made(Image.fromarray(generated.pixels))}
    if generated.depth is not None:
        made["depth_map"] = _made(Image.fromarray(generated.depth))
    return made


def _made(picture: Image.Image) -> MadeImage:
    return MadeImage(picture=picture, width=picture.width, height=picture.height)


@torch.inference_mode()
def decode_latents(pipeline: Any, latents: torch.Tensor) -> Pixels:
    """One row's latents as a picture, by the pipeline's own VAE."""
    vae = pipeline.vae
    scaled = latents[None].to(vae.dtype) / vae.config.scaling_factor
    image = pipeline.image_processor.postprocess(vae.decode(scaled).sample, output_type="pt")
    pixels: Pixels = (image[0].float() * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels


Flagged = Literal["drop", "black", "keep"]


def combined(before: bool | None, now: bool | None) -> bool | None:
    """The verdict on a chain so far: one flagged step flags it, and steps without a checker say nothing."""
    if before is None or now is None:
        return now if before is None else before
    return before or now


def withhold(generated: Generated, flagged: Flagged) -> Generated:
    """What is stored of a flagged picture, its depth map, and the steps that led to it."""
    sample = generated.sample
    if flagged == "keep":
        return generated
    if flagged == "drop":
        return replace(
            generated, sample=replace(sample, step_images=()), pixels=None, latents=None, depth=None
        )
    return replace(
        generated,
        sample=replace(sample, step_images=tuple(np.zeros_like(step) for step in sample.step_images)),
        pixels=None if generated.pixels is None else np.zeros_like(generated.pixels),
        depth=None if generated.depth is None else np.zeros_like(generated.depth),
    )
