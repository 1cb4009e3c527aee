"""The outputs of a pipeline's call, copied from the device as bytes."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from actors.images.encoding import Depth, Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOutput:
    """One image, or latents, of a call's outputs."""

    pixels: Pixels | None
    """None if the call gave latents."""
    latents: torch.Tensor | None = None
    """(channels, height, width), for the next step; None if the call gave images."""
    depth: Depth | None = None
    """The depth map; None if the system gives none."""
    finite: bool
    """False if a value is NaN or infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingOutputs:
    """The outputs of one call. They are copied from a GPU while it goes on with other work."""

    pixels: torch.Tensor | None = None
    """(N, height, width, 3) uint8, in the host's memory."""
    depth: torch.Tensor | None = None
    """(N, height, width) int32, 0 to 65535: torch has few operations on uint16."""
    latents: torch.Tensor | None = None
    """(N, channels, height, width), on the device."""
    finite: torch.Tensor
    """(N,) bool: for each image, whether all values are finite."""
    copied: torch.cuda.Event | None = None
    """The CUDA event at the end of the copies; None if nothing has to be copied."""

    @property
    def ready(self) -> bool:
        """Whether `get` returns at once."""
        return self.copied is None or bool(self.copied.query())  # type: ignore[no-untyped-call]

    def get(self) -> list[ImageOutput]:
        """The outputs image by image; waits until they have been copied."""
        if self.copied is not None:
            self.copied.synchronize()
        count = len(self.finite)
        all_pixels = [None] * count if self.pixels is None else self.pixels.numpy()
        all_depths = [None] * count if self.depth is None else self.depth.numpy().astype(np.uint16)
        all_latents = [None] * count if self.latents is None else self.latents
        return [
            ImageOutput(pixels=pixels, depth=depth, latents=latents, finite=bool(finite))
            for pixels, depth, latents, finite in zip(
                all_pixels, all_depths, all_latents, self.finite, strict=True
            )
        ]


def pending_outputs(output: Any, *, gives_latents: bool) -> PendingOutputs:
    """The outputs in a pipeline's return value, rounded on the device as diffusers' numpy_to_pil rounds."""
    images = output.rgb if hasattr(output, "rgb") else output.images
    if isinstance(images, list):
        pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images])
        return PendingOutputs(pixels=pixels, finite=torch.ones(len(images), dtype=torch.bool))
    if isinstance(images, np.ndarray):
        # In diffusers 0.42.1, Safe gives only PIL images and numpy arrays.
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    values = {"finite": _finite(images)}
    if not gives_latents:
        values["pixels"] = (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    depth = getattr(output, "depth", None)
    if depth is not None:
        values["finite"] &= _finite(depth)
        values["depth"] = (depth.float() * 65535).round().to(torch.int32)
    copied = begin_copies(values, images.device)
    return PendingOutputs(latents=images if gives_latents else None, copied=copied, **values)


def _finite(values: torch.Tensor) -> torch.Tensor:
    return torch.isfinite(values).flatten(1).all(dim=1)


def begin_copies(values: dict[str, torch.Tensor], device: torch.device) -> torch.cuda.Event | None:
    """Replace the values by copies in the host's memory, which are complete once the event has happened.

    On a CPU the values stay, and there is no event.
    """
    if device.type != "cuda":
        return None
    stream = _copy_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for name, value in values.items():
            # Only to pinned memory does a copy run beside the GPU's other work.
            host = torch.empty_like(value, device="cpu", pin_memory=True)
            values[name] = host.copy_(value, non_blocking=True)
            value.record_stream(stream)
        copied.record(stream)
    return copied


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
