"""Encoding pictures for the output."""

import io
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

# Pillow tries five filters on every line, and an H200 would wait for it with few-step models. One filter for
# all, and runs of equal bytes only, gives files of the same size in a fifth of the time.
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
"""File name endings by output.format."""

TYPICAL_BYTES_PER_PIXEL = {"png": 1.5, "webp": 1.3, "jpeg": 0.5}
"""For the plan's estimate: drawn pictures take about half of their 3 bytes, noise (2.4) more."""


def encode(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], image_format: str) -> bytes:
    """(height, width, 3) uint8 RGB, or (height, width) uint16 depth, to a file's bytes.

    Equal pixels give equal bytes.
    """
    if image_format == "png":
        return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), **_PNG))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **_PILLOW[image_format])
    return file.getvalue()


Pixels = npt.NDArray[np.uint8]
"""(height, width, 3) RGB."""

Depth = npt.NDArray[np.uint16]
"""(height, width), 0 to 65535."""
