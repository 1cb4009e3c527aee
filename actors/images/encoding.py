"""The encoding of images and depth maps for the output."""

import io
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

from schemas.errors import RowError

# Pillow tries five filters on every line, and with few-step models an H200 would wait for it. One filter for
# all lines, and runs of equal bytes only, give files of the same size in a fifth of the time.
_PNG: dict[str, Any] = {
    "level": 1,
    "filter": imagecodecs.PNG.FILTER.UP,
    "strategy": imagecodecs.PNG.STRATEGY.RLE,
}
_PILLOW: dict[str, dict[str, int | bool]] = {
    "webp": {"lossless": True, "method": 0},
    "jpeg": {"quality": 95, "subsampling": 0},
}
MEDIA_ENDINGS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
"""The ending of an image file's name, by output.format."""

MAX_SIDES = {"png": 2**31 - 1, "webp": 16_383, "jpeg": 65_500}
"""The longest side of an image that its file can hold, in pixels, by output.format."""

TYPICAL_BYTES_PER_PIXEL = {"png": 1.5, "webp": 1.3, "jpeg": 0.5}
"""The encoded size that the plan's estimate assumes, by output.format. Drawings take about half of their 3
bytes per pixel; noise takes more (2.4)."""

TYPICAL_DEPTH_BYTES_PER_PIXEL = 1.5
"""The same for depth maps, which have 2 bytes per pixel."""


def encode(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], image_format: str) -> bytes:
    """An image or depth map as the bytes of a file: (height, width, 3) uint8 RGB, or (height, width) uint16.

    Equal pixels give equal bytes. RowError where the format cannot hold the image.
    """
    try:
        if image_format == "png":
            return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), **_PNG))
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, image_format, **_PILLOW[image_format])
    except (OSError, ValueError, imagecodecs.PngError) as error:
        height, width = pixels.shape[:2]
        raise RowError(
            "encoding_error", f"an image of {width}x{height} could not be encoded as {image_format}: {error}"
        ) from error
    return file.getvalue()


Pixels = npt.NDArray[np.uint8]
"""An image: (height, width, 3), RGB."""

Depth = npt.NDArray[np.uint16]
"""A depth map: (height, width), 0 to 65535."""
