"""Encoding pictures for the output."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

_OPTIONS: dict[str, dict[str, int | bool]] = {
    # PNG level 1 costs 2 % in size on noise and saves a tenth of the time.
    "png": {"compress_level": 1},
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
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **_OPTIONS[image_format])
    return file.getvalue()
