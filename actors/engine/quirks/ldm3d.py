"""Splits the output of an LDM3D VAE into an image and its 16-bit depth map."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

MAX_DEPTH = 65535
"""The largest value of a 16-bit depth map."""
OUTPUT_TYPES = ("pt", "np", "pil")
"""The output types in which an image and its depth map are split."""


class LDM3DImageProcessor:
    """A working `image_processor` for the StableDiffusionLDM3DPipeline of diffusers 0.42.1.

    Its own, VaeImageProcessorLDM3D, has five faults:
    - It has no "pt" and no "latent" output.
    - It combines the two bytes of a 6-channel VAE's depth in uint8, which loses the high byte. For "pil",
      Pillow 11 and later then refuse the array as 16-bit.
    - For "np", it does not scale these two from [0, 1] to bytes first: every depth is 0.
    - It gives Pillow a 4-channel VAE's depth as (height, width, 1), which Pillow 12 and later refuse.
    - With a safety checker, which gets "pil" images, it therefore fails for every output type.
    """

    def postprocess(
        self, image: torch.Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> tuple[Any, Any]:
        """The RGB images and the depth maps of a decoded batch, (N, 4 or 6, height, width) in [-1, 1].

        - pt: (N, 3, height, width) and (N, height, width), float32 in [0, 1]
        - np: the same, with the colours last
        - pil: RGB and 16-bit ("I;16") images
        - latent: the unchanged batch, and None

        `do_denormalize` is False for an image that the safety checker has replaced by zeros: they stay zeros.
        """
        if output_type == "latent":
            return image, None
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be {', '.join(OUTPUT_TYPES)} or latent, not {output_type!r}")
        values = _denormalize(image.float(), do_denormalize)
        rgb, depth = values[:, :3], _depth(values[:, 3:])
        if output_type == "pt":
            return rgb, depth
        images, maps = rgb.permute(0, 2, 3, 1).cpu().numpy(), depth.cpu().numpy()
        if output_type == "np":
            return images, maps
        levels = (maps * MAX_DEPTH).round().astype(np.uint16)
        return VaeImageProcessor.numpy_to_pil(images), [Image.fromarray(depth_map) for depth_map in levels]


def _denormalize(image: torch.Tensor, do_denormalize: Sequence[bool] | None) -> torch.Tensor:
    values: torch.Tensor = VaeImageProcessor.denormalize(image)
    if do_denormalize is None or all(do_denormalize):
        return values
    chosen = torch.tensor(do_denormalize, device=image.device).view(-1, 1, 1, 1)
    return torch.where(chosen, values, image)


def _depth(channels: torch.Tensor) -> torch.Tensor:
    """Depth maps (N, height, width) in [0, 1] from the VAE's depth channels.

    A single channel has the depth itself. Of three channels, the second has its high byte and the third its
    low byte.
    """
    if channels.shape[1] == 1:
        return channels[:, 0]
    high, low = (channels[:, 1:] * 255).round().unbind(dim=1)
    return (256 * high + low) / MAX_DEPTH
