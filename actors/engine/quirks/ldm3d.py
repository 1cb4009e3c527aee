"""What an LDM3D VAE decodes to, split into a picture and its 16-bit depth map."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

MAX_DEPTH = 65535
OUTPUT_TYPES = ("pt", "np", "pil")


class LDM3DImageProcessor:
    """The `image_processor` that a StableDiffusionLDM3DPipeline of diffusers 0.42.1 should have come with.

    Its own, VaeImageProcessorLDM3D, has no "pt" and no "latent" output, and
    - combines the two bytes of a 6-channel VAE's depth in uint8, so that the high byte is lost ("pil":
      Pillow 11 and later then refuse the array as 16-bit);
    - does not scale them from [0, 1] to bytes first for "np": every depth is 0;
    - gives Pillow a 4-channel VAE's depth as (height, width, 1), which Pillow 12 and later refuse;
    - thereby fails for every output type beside a safety checker, which is shown "pil" pictures.
    """

    def postprocess(
        self, image: torch.Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> tuple[Any, Any]:
        """RGB and depth of a decoded batch, (N, 4 or 6, height, width) in [-1, 1].

        pt: (N, 3, height, width) and (N, height, width), float32 in [0, 1]; np: the same with the colours
        last; pil: RGB and 16-bit ("I;16") images; latent: the batch as it came, and None.
        `do_denormalize` is False where the safety checker has put zeros, which stay zeros.
        """
        if output_type == "latent":
            return image, None
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is one of {', '.join(OUTPUT_TYPES)}, latent; not {output_type!r}")
        values = _denormalize(image.float(), do_denormalize)
        rgb, depth = values[:, :3], _depth(values[:, 3:])
        if output_type == "pt":
            return rgb, depth
        pictures, maps = rgb.permute(0, 2, 3, 1).cpu().numpy(), depth.cpu().numpy()
        if output_type == "np":
            return pictures, maps
        levels = (maps * MAX_DEPTH).round().astype(np.uint16)
        return VaeImageProcessor.numpy_to_pil(pictures), [Image.fromarray(one) for one in levels]


def _denormalize(image: torch.Tensor, do_denormalize: Sequence[bool] | None) -> torch.Tensor:
    values: torch.Tensor = VaeImageProcessor.denormalize(image)
    if do_denormalize is None:
        return values
    chosen = torch.tensor(do_denormalize, device=image.device).view(-1, 1, 1, 1)
    return torch.where(chosen, values, image)


def _depth(channels: torch.Tensor) -> torch.Tensor:
    """(N, height, width) from the VAE's depth channels: one holds the depth; of three, the second holds
    its high byte and the third its low one."""
    if channels.shape[1] == 1:
        return channels[:, 0]
    high, low = (channels[:, 1:] * 255).round().unbind(dim=1)
    return (256 * high + low) / MAX_DEPTH
