"""Opening the pictures of a row: only known formats, only sane sizes, always RGB (masks: L)."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from actors.images.spool import Encoded, encoded_bytes
from schemas.errors import RowError

FORMATS = ("PNG", "JPEG", "WEBP")
"""Pillow opens dozens of formats, some by decoders that few people look after."""
MAX_PIXELS = 8192 * 8192
"""Read from the header, before anything is decoded: a 10 kB PNG can unfold to 243 MB."""
MAX_SCANS = 500
"""Of a progressive JPEG, each of which passes over all pixels; common ones have ten."""
_SCAN = b"\xff\xda"
"""What a scan begins with; among pixels no 255 is followed by it."""
_MODES = {"image": "RGB", "mask_image": "L", "depth_map": "I;16"}
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
MAX_IMAGE_FILE_BYTES = 256 << 20
"""Of a picture's file, in a row or named by one."""
# Pillow only warns at half of ours, and raises at its own: one cap, with one message, is enough.
Image.MAX_IMAGE_PIXELS = None

ReadUri = Callable[[str], Encoded]
"""Fetches an encoded picture by its URI; RowError where it cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """A picture of the input, not yet opened."""

    data: Encoded | None
    """The encoded file, where the row carries it."""
    uri: str | None
    """Where it is, otherwise."""
    problem: RowError | None = None
    """Why neither will do."""


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
        data = encoded_bytes(self.data)
        try:
            with _open(data) as opened:
                opened.load()
                turn = _TURNS.get(_orientation(opened, data))
                return _as_mode(opened if turn is None else opened.transpose(turn), _MODES[self.field])
        except (OSError, SyntaxError, ValueError) as error:
            raise _invalid(self.field, error) from error


def open_image(field: str, source: ImageSource, read_uri: ReadUri) -> EncodedImage:
    """Fetch a picture if it is elsewhere and check its header; RowError where it is of no use."""
    if source.problem:
        raise source.problem
    if source.data is None and source.uri is None:
        raise RowError(f"missing_{field}", f"`{field}` has neither bytes nor a path")
    encoded = source.data if source.data is not None else read_uri(source.uri or "")
    data = encoded_bytes(encoded)
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
