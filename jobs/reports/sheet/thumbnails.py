"""Images and texts, reduced to a size that suits the contact sheet."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from actors.images.input_images import ImageSource, open_image
from actors.storage.output import Output
from jobs.output.stored_images import read_image
from schemas.errors import RowError


class Limits(NamedTuple):
    """How large a thumbnail may be."""

    side: int
    """Pixels of the longer side."""
    size_bytes: int
    """Noise takes ten times what a photograph takes; its quality is lowered until it fits."""


LARGE = Limits(320, 20_000)
SMALL = Limits(192, 7_000)
"""The limits on a page of very many frames."""
STEP = Limits(160, 6_000)
"""Those of an image of a chain's earlier step, and of one that was kept of the input."""
CRISP_SIDE = 128
"""Images up to this side are stored without loss if they fit, and the page enlarges them pixel by pixel."""
QUALITIES = (80, 60, 30, 5)
"""WebP qualities, tried in this order until a thumbnail fits."""
MAX_TEXT = 2000
"""Characters of one text on the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """An image of a chain's earlier step."""

    uri: str | None
    """The image as a data: URI; None where it cannot be opened."""
    size: tuple[int, int] | None
    """Width and height of the stored image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptImage:
    """An image of the input row that the output has kept, such as a control image."""

    column: str
    thumbnail: str
    """The image as a data: URI."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnails:
    """The thumbnails of an output row, or why it has none."""

    thumbnail: str | None = None
    """The image as a data: URI; None where the row has none."""
    depth: str | None = None
    """The depth map as a data: URI; None where the row has none."""
    steps: tuple[Thumbnail, ...] = ()
    """The images of a chain's earlier steps, if the row has them."""
    kept: tuple[KeptImage, ...] = ()
    """The images that were kept of the input row."""
    problem: str = ""
    """Why the images cannot be opened; else empty."""


def text(value: object, most: int = MAX_TEXT) -> str:
    """The text that the page shows for a value, cut after so many characters."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and all(isinstance(each, dict) and "sha256" in each for each in value):
        shown = _adapters_text(value)
    else:
        shown = str(value)
    return shown if len(shown) <= most else f"{shown[:most]}… ({len(shown):,} characters)"


_ADAPTERS = {"name": "weight", "controlnet": "controlnet_conditioning_scale"}
"""By the field of an adapter's name in an output's lists of adapters, that of its weight, if it has one."""


def _adapters_text(adapters: Sequence[Mapping[str, Any]]) -> str:
    """The names and weights of adapters, as an output has them."""
    return ", ".join(
        f"{each[name]} {text(each[weight])}" if weight in each else str(each[name])
        for each in adapters
        for name, weight in _ADAPTERS.items()
        if name in each
    )


def id_text(row_id: object, most: int = MAX_TEXT) -> str:
    """The text that the page has for a row's id; of a longer one the two ends, which tell it from others."""
    shown, half = str(row_id), most // 2
    return shown if len(shown) <= most else f"{shown[:half]}…{shown[-half:]}"


def thumbnails_of(
    output: Output, record: Mapping[str, Any], kept: Sequence[str] = (), limits: Limits = LARGE
) -> Thumbnails:
    """The thumbnails of an output row; the row's images are in it or in the output's `images/`.

    `kept`: the kept columns that are images.
    """
    try:
        return Thumbnails(
            thumbnail=_thumbnail_of(output, "image", record["image"], limits),
            depth=_thumbnail_of(output, "depth_map", record.get("depth"), limits),
            steps=tuple(_step_of(output, image) for image in record.get("step_images") or ()),
            kept=tuple(_kept_of(output, record, kept)),
        )
    except RowError as error:
        return Thumbnails(problem=text(error.message))


def _thumbnail_of(output: Output, kind: str, image: Mapping[str, Any] | None, limits: Limits) -> str | None:
    """An image's thumbnail as a data: URI; None for no image. RowError where the image cannot be opened."""
    if image is None:
        return None
    decoded = _decoded(output, kind, image)
    decoded = _in_eight_bits(decoded) if decoded.mode == "I;16" else decoded
    return _thumbnail(decoded, limits)


def _step_of(output: Output, image: Mapping[str, Any]) -> Thumbnail:
    """The thumbnail of an earlier step's image. One that cannot be opened does not hide the result."""
    try:
        decoded = _decoded(output, "image", image)
    except RowError:
        return Thumbnail(uri=None, size=None)
    size = decoded.size
    return Thumbnail(uri=_thumbnail(decoded, STEP), size=size)


def _kept_of(output: Output, record: Mapping[str, Any], columns: Sequence[str]) -> Iterator[KeptImage]:
    """The kept images that can be opened; those that are only named are the input's, and are not read."""
    for column in columns:
        image = record[column]
        if image and image["bytes"]:
            with suppress(RowError):
                thumbnail = _thumbnail(_decoded(output, "image", image), STEP)
                yield KeptImage(column=column, thumbnail=thumbnail)


def _decoded(output: Output, kind: str, image: Mapping[str, Any]) -> Image.Image:
    source = ImageSource(data=image["bytes"], uri=image["path"])
    return open_image(kind, source, lambda uri: read_image(output, uri)).decode()


def _in_eight_bits(depth: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(depth) >> 8).astype(np.uint8))


def _thumbnail(image: Image.Image, limits: Limits) -> str:
    """The image as a data: URI. It is scaled down in place, and stored with the best quality that fits."""
    image.thumbnail((limits.side, limits.side), Image.Resampling.LANCZOS)
    lossless = ({"lossless": True},) if max(image.size) <= CRISP_SIDE else ()
    data = b""
    for options in (*lossless, *({"quality": quality} for quality in QUALITIES)):
        data = _webp(image, **options)
        if len(data) <= limits.size_bytes:
            break
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _webp(image: Image.Image, **options: int | bool) -> bytes:
    file = io.BytesIO()
    image.save(file, "webp", **options)
    return file.getvalue()
