"""Opening the pictures of a row: only known formats, only sane sizes, always RGB (masks: L)."""

import io
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from actors.held_bytes import Encoded, whole
from actors.routing import Routed
from actors.rows import ImageSource, Row
from schemas.errors import RowError
from schemas.systems.system_table import LEAST_SIZE_FACTOR, System

FORMATS = ("PNG", "JPEG", "WEBP")
"""Pillow opens dozens of formats, some by decoders that few people look after."""
MAX_PIXELS = 8192 * 8192
"""Read from the header, before anything is decoded: a 10 kB PNG can unfold to 243 MB."""
MAX_SCANS = 500
"""Of a progressive JPEG, each of which passes over all pixels; common ones have ten."""
_SCAN = b"\xff\xda"
"""What a scan begins with; among pixels no 255 is followed by it."""
_MODES = {"image": "RGB", "mask_image": "L", "depth_map": "I;16"}

# Pillow only warns at half of ours, and raises at its own: one cap, with one message, is enough.
Image.MAX_IMAGE_PIXELS = None


ReadUri = Callable[[str], Encoded]
"""Fetches an encoded picture by its URI; RowError where it cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """A picture whose header was looked at and found fit; not decoded yet."""

    field: str
    data: Encoded
    width: int
    """Pixels, after the turn that EXIF may ask for."""
    height: int
    """Pixels."""

    def decode(self) -> Image.Image:
        """The pixels, upright: RGB for an image, L for a mask, I;16 for a depth map.

        RowError where the file is damaged.
        """
        data = whole(self.data)
        try:
            with _open(data) as opened:
                opened.load()
                turn = _TURNS.get(_orientation(opened, data))
                return _as_mode(opened if turn is None else opened.transpose(turn), _MODES[self.field])
        except (OSError, SyntaxError, ValueError) as error:
            raise _invalid(self.field, error) from error


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WORDS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""PNG's chunks in which Pillow looks for EXIF."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's Orientation. Pillow's own exif_transpose also writes the EXIF anew, which damaged ones break."""


def _orientation(picture: Image.Image, data: bytes) -> int:
    if picture.format == "PNG" and not _has_words_behind_pixels(data):
        # Pillow 13's own for PNG decodes the whole picture first, for what may stand behind the pixels.
        found = Image.Image.getexif(picture).get(0x0112, 1)
    else:
        found = picture.getexif().get(0x0112, 1)
    return found if isinstance(found, int) else 1


def _has_words_behind_pixels(png: bytes) -> bool:
    """Whether chunks that may hold EXIF come after the first of pixels: then the header does not tell all."""
    at, in_pixels = len(_PNG_SIGNATURE), False
    while at + 8 <= len(png):
        size, name = struct.unpack_from(">I4s", png, at)
        in_pixels |= name == b"IDAT"
        if in_pixels and name in _WORDS:
            return True
        at += size + 12  # with the length, the name and the checksum
    return False


def _as_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode != "I;16" or picture.mode == mode:
        return picture.convert(mode)
    if picture.mode == "I":
        return Image.fromarray(np.asarray(picture).clip(0, 65535).astype(np.uint16))
    # Eight bits spread over sixteen: white stays the greatest depth.
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


def open_images(row: Row, read_uri: ReadUri, *, max_pixels: int, vae_factor: int) -> dict[str, EncodedImage]:
    """The pictures that the row must bring; RowError where one is missing or of no use.

    `max_pixels`: of the spec, what a model is given at most; `vae_factor`: pixels per latent of the model.
    """
    system = row.routed.system
    assert system is not None, "rows with a problem are not opened"
    optional = (name for name in row.routed.optional_images() if name in row.images)
    opened = {
        field: open_image(field, row.images[field], read_uri)
        for field in dict.fromkeys((*row.routed.needed_images(), *optional))
    }
    _check_sizes(opened, system, vae_factor if system.cuts_picture else 1)
    _check_mask(opened, row, max(vae_factor, LEAST_SIZE_FACTOR))
    _check_work(opened, row.routed, max_pixels)
    return opened


def _check_work(opened: Mapping[str, EncodedImage], routed: Routed, max_pixels: int) -> None:
    """That a model is given no more to work on than the spec allows."""
    image = opened.get("image")
    if image is None or "height" in routed.defaults:  # There the picture decides nothing.
        return
    if image.width * image.height * routed.growth() ** 2 > max_pixels:
        raise RowError(
            "image_too_large",
            f"`image` is {image.width}x{image.height}, the size at which {routed.route} works or begins; "
            f"input.max_pixels allows {max_pixels:,} pixels",
        )


def _check_sizes(opened: Mapping[str, EncodedImage], system: System, least: int) -> None:
    image = opened.get("image")
    if image and min(image.width, image.height) < least:
        raise RowError(
            "invalid_size",
            f"`image` is {image.width}x{image.height}; {system.task} needs {least} pixels a side at least",
        )
    multiple = system.picture_multiple
    if image and (image.width % multiple or image.height % multiple):
        raise RowError(
            "invalid_size",
            f"`image` is {image.width}x{image.height}; {system.task} needs multiples of {multiple}",
        )


def _check_mask(opened: Mapping[str, EncodedImage], row: Row, size_factor: int) -> None:
    """That it has the size of the picture that is painted over, or, where a step before makes that one larger
    or smaller and nothing is cropped, of the picture that the row brings."""
    mask = opened.get("mask_image")
    if mask is None:
        return
    image, place = opened.get("image"), _painting_place(row)
    painted = _painted_size(opened, row, place, size_factor)
    step = row.routed.then[place - 1].defaults if place else row.parameters
    # diffusers 0.42.1 resizes masks, but looks for the crop in what it is given.
    cropped = step.get("padding_mask_crop") is not None
    sizes = {painted} if image is None or cropped else {painted, (image.width, image.height)}
    if (mask.width, mask.height) not in sizes:
        where = f"that step {place + 1} is given" if place else "that is painted over"
        raise RowError(
            "mask_size",
            f"the mask must have the size of the image {where}, {painted[0]}x{painted[1]}; "
            f"`mask_image` is {mask.width}x{mask.height}",
        )


def _painting_place(row: Row) -> int:
    """Of the first step that takes a mask, from 0."""
    steps = (row.routed, *row.routed.then)
    return next(i for i, step in enumerate(steps) if step.system and "mask_image" in step.system.images)


def _painted_size(
    opened: Mapping[str, EncodedImage], row: Row, place: int, size_factor: int
) -> tuple[int, int]:
    """(width, height) of the picture that the step at `place` is given."""
    before = [step.system for step in (row.routed, *row.routed.then)[:place] if step.system]
    if not before:
        return opened["image"].width, opened["image"].height
    if "height" in before[0].defaults:
        width, height = (int(str(row.parameters[side])) for side in ("width", "height"))
    else:
        # The first step rounds it down.
        width, height = (
            side // size_factor * size_factor for side in (opened["image"].width, opened["image"].height)
        )
    growth = math.prod(system.scale for system in before)
    return width * growth, height * growth


def open_image(field: str, source: ImageSource, read_uri: ReadUri) -> EncodedImage:
    """Fetch a picture if it is elsewhere and check its header; RowError where it is of no use."""
    if source.problem:
        raise source.problem
    if source.data is None and source.uri is None:
        raise RowError(f"missing_{field}", f"`{field}` has neither bytes nor a path")
    encoded = source.data if source.data is not None else read_uri(source.uri or "")
    data = whole(encoded)
    try:
        with _open(data) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise RowError(
                    "image_too_large",
                    f"`{field}` has {width}x{height} pixels; at most {MAX_PIXELS:,} are read",
                )
            _check_kind(field, opened)
            if opened.format == "JPEG" and data.count(_SCAN) > MAX_SCANS:
                raise RowError(
                    "invalid_image", f"`{field}` has more than {MAX_SCANS} scans: decoding could take hours"
                )
            # Only now: it may take decoding.
            if _orientation(opened, data) >= 5:  # turned by 90 degrees
                width, height = height, width
    except (OSError, SyntaxError, ValueError) as error:
        raise _invalid(field, error) from error
    return EncodedImage(field=field, data=encoded, width=width, height=height)


def _check_kind(field: str, opened: Image.Image) -> None:
    """RowError for what Pillow would spoil or leave out without a word."""
    # Photographs of some telephones are JPEGs with a second picture behind (MPO): that one is no frame.
    if opened.format in ("PNG", "WEBP") and getattr(opened, "is_animated", False):
        raise RowError("animated_image", f"`{field}` has several frames; give the one that is meant")
    if field != "depth_map" and opened.mode.startswith("I"):
        # Pillow 13 turns all from 255 on into white.
        raise RowError(
            "image_mode", f"`{field}` has one channel of 16 bits or more; save it with 8 bits a channel"
        )


def _invalid(field: str, error: Exception) -> RowError:
    if isinstance(error, UnidentifiedImageError):
        # Pillow's own words hold a memory address, which no part may.
        return RowError("invalid_image", f"`{field}` is no {', '.join(FORMATS)} picture")
    return RowError("invalid_image", f"`{field}` is damaged: {error}")


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)
