"""From one step of a chain to the next: results stay in the worker's memory."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from actors.engine.engine import Generated
from actors.engine.samples import StepResult
from actors.images.encoding import Pixels


def step_results(generated: Generated) -> dict[str, StepResult]:
    """The results of a step, by the input field of the next step that each fills."""
    if generated.latents is not None:
        height, width = generated.latents.shape[-2:]
        return {"image": StepResult(image=generated.latents, width=width, height=height)}
    assert generated.pixels is not None, "a step that failed has no next one"
    results = {"image": _step_result(Image.fromarray(generated.pixels))}
    if generated.depth is not None:
        results["depth_map"] = _step_result(Image.fromarray(generated.depth))
    return results


def _step_result(image: Image.Image) -> StepResult:
    return StepResult(image=image, width=image.width, height=image.height)


@torch.inference_mode()
def decode_latents(pipeline: Any, latents: torch.Tensor) -> Pixels:
    """One row's latents, decoded to an image by the pipeline's own VAE."""
    image = decoded_images(pipeline, latents[None])[0]
    pixels: Pixels = (image.float() * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels


def decoded_images(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """The images of latents (N, channels, height, width), on the device: (N, 3, height, width) in [0, 1]."""
    vae = pipeline.vae
    decoded = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    images: torch.Tensor = pipeline.image_processor.postprocess(decoded, output_type="pt")
    return images


Flagged = Literal["drop", "black", "keep"]
"""What is stored of a flagged image: nothing, a black one of its size, or the image itself."""


def combined_verdict(before: bool | None, now: bool | None) -> bool | None:
    """The verdict on a chain so far: True if any step is flagged, None if no step had a checker."""
    if before is None or now is None:
        return now if before is None else before
    return before or now


def withhold(generated: Generated, flagged: Flagged) -> Generated:
    """The flagged result as it is stored: its image, its depth map and the images of the steps before."""
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
