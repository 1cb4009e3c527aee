"""Images and texts made small enough for the contact sheet."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from actors.images.input_images import ImageSource, open_image
from actors.storage.output import Output
from jobs.output.stored_images import read_image
from schemas.errors import RowError

THUMBNAIL_SIDE = 320
CRISP_SIDE = 128
"""Pictures up to here are stored without loss if they fit, and the page enlarges them pixel by pixel."""
THUMBNAIL_BYTES = 20_000
"""Noise takes ten times what a photograph takes; its quality is lowered until it fits."""
QUALITIES = (80, 60, 30, 5)
MAX_TEXT = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnails:
    """A row's thumbnails, or why there are none."""

    thumbnail: str | None = None
    depth: str | None = None
    problem: str = ""


def text(value: object) -> str:
    """A value as the page shows it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    shown = str(value)
    return shown if len(shown) <= MAX_TEXT else f"{shown[:MAX_TEXT]}… ({len(shown):,} characters)"


def thumbnails_of(output: Output, record: Mapping[str, Any]) -> Thumbnails:
    try:
        return Thumbnails(
            thumbnail=_thumbnail_of(output, "image", record["image"]),
            depth=_thumbnail_of(output, "depth_map", record.get("depth")),
        )
    except RowError as error:
        return Thumbnails(problem=text(error.message))


def _thumbnail_of(output: Output, kind: str, image: Mapping[str, Any] | None) -> str | None:
    """A thumbnail; None where there is no picture. RowError where there is one that cannot be opened."""
    if image is None:
        return None
    source = ImageSource(data=image["bytes"], uri=image["path"])
    picture = open_image(kind, source, lambda uri: read_image(output, uri)).decode()
    return _thumbnail(_in_eight_bits(picture) if picture.mode == "I;16" else picture)


def _in_eight_bits(depth: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(depth) >> 8).astype(np.uint8))


def _thumbnail(picture: Image.Image) -> str:
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    tries = ({"lossless": True},) if max(picture.size) <= CRISP_SIDE else ()
    data = b""
    for options in (*tries, *({"quality": quality} for quality in QUALITIES)):
        data = _webp(picture, **options)
        if len(data) <= THUMBNAIL_BYTES:
            break
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _webp(picture: Image.Image, **options: int | bool) -> bytes:
    file = io.BytesIO()
    picture.save(file, "webp", **options)
    return file.getvalue()
