"""From one step of a chain to the next: the picture stays on the worker."""

from typing import Any

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
