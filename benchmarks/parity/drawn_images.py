"""Drawn images as input, as Hugging Face's image structs."""

import io
from typing import Any

from PIL import Image

Record = dict[str, Any]


def drawn_image(
    size: tuple[int, int] = (64, 64), colour: str = "teal", mode: str = "RGB", image_format: str = "PNG"
) -> Record:
    """A drawn image as an HF image struct."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.paste(colour, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    return encoded(image.convert(mode), image_format)


def mask(size: tuple[int, int] = (64, 64)) -> Record:
    """A mask as an HF image struct: the right half is to be painted."""
    image = Image.new("L", size, 0)
    image.paste(255, (size[0] // 2, 0, size[0], size[1]))
    return encoded(image)


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> Record:
    """The image as an HF image struct."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return {"bytes": file.getvalue(), "path": None}


def image_of(row: Record) -> Image.Image:
    """The decoded image of an output row."""
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
