"""The images of a row, opened: only known formats and reasonable sizes, always as RGB (masks as L)."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from actors.images.spool import Encoded, encoded_bytes
from schemas.errors import RowError

FORMATS = ("PNG", "JPEG", "WEBP")
"""The formats that are read. Pillow knows dozens more, some with decoders that few people maintain."""
MAX_PIXELS = 8192 * 8192
"""The largest image. The header is checked before anything is decoded: a 10 kB PNG can unfold to 243 MB."""
MAX_SCANS = 500
"""The most scans of a progressive JPEG. Each scan passes over all pixels; common files have ten."""
_SCAN = b"\xff\xda"
"""The bytes that begin a scan. Coded pixels never have them, because no 255 in them is followed by 218."""
_MODES = {"mask_image": "L", "depth_map": "I;16"}
"""The modes of images by field; all others are RGB."""
LEAST_MARK = 128
"""The least value of a mask's pixel that is repainted: diffusers rounds masks to black and white."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""The chunks of a PNG in which Pillow looks for EXIF."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image is turned upright, by EXIF's Orientation. Pillow's own exif_transpose also rewrites the EXIF,
and fails where it is damaged."""
MAX_IMAGE_FILE_BYTES = 256 << 20
"""The largest image file, in a row or named by one."""
# Pillow warns from its own limit on, and raises from twice that. Our limit, with one message, is enough.
Image.MAX_IMAGE_PIXELS = None

ReadUri = Callable[[str], Encoded]
"""A function that returns the encoded image at a URI; it raises RowError where this cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """An image of the input that is not opened yet."""

    data: Encoded | None
    """The encoded file, if the row has it."""
    uri: str | None
    """Otherwise the image's URI, as the row has it."""
    problem: RowError | None = None
    """Why the image cannot be used, if this is known already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """An image whose header has been checked. It is not decoded yet."""

    field: str
    data: Encoded
    width: int
    """In pixels, after the turn that EXIF may ask for."""
    height: int
    """In pixels, after the same turn."""

    def decode(self) -> Image.Image:
        """The pixels, upright: RGB for an image, L for a mask, I;16 for a depth map.

        RowError where the file is damaged, or is a mask that marks nothing.
        """
        data = encoded_bytes(self.data)
        try:
            with _open(data) as opened:
                opened.load()
                turn = _TURNS.get(_orientation(opened, data))
                image = _as_mode(
                    opened if turn is None else opened.transpose(turn), _MODES.get(self.field, "RGB")
                )
                if self.field == "mask_image":
                    _refuse_empty(image, opened)
                return image
        except (OSError, SyntaxError, ValueError) as error:
            raise _invalid_image(self.field, error) from error


def _refuse_empty(mask: Image.Image, opened: Image.Image) -> None:
    """Raise RowError for a mask without a pixel that is repainted. `opened` is the image that it is made of.

    diffusers 0.42.1 would return the input image, without an error.
    """
    greatest = int(np.asarray(mask).max())
    if greatest >= LEAST_MARK:
        return
    advice = "paint the area that is to change white"
    if greatest == 1:
        advice = "multiply its values by 255"
    elif _alpha_marks(opened):
        advice = "its alpha channel marks an area: save that channel as the mask"
    raise RowError(
        "empty_mask",
        f"`mask_image` marks nothing: its greatest value is {greatest}, and only pixels of {LEAST_MARK} or "
        f"more are repainted; {advice}",
    )


def _alpha_marks(opened: Image.Image) -> bool:
    """Whether an image has an alpha channel in which some pixels are marked and others are not."""
    if not opened.has_transparency_data:
        return False
    alpha = np.asarray(opened.convert("RGBA").getchannel("A"))
    return bool(alpha.min() < LEAST_MARK <= alpha.max())


def open_image(field: str, source: ImageSource, read_uri: ReadUri) -> EncodedImage:
    """Fetch an image, if the row has only its URI, and check its header; RowError where it cannot be used."""
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
            # This comes last, because it may have to decode the image.
            if _orientation(opened, data) >= 5:  # turned by 90 degrees
                width, height = height, width
    except (OSError, SyntaxError, ValueError) as error:
        raise _invalid_image(field, error) from error
    return EncodedImage(field=field, data=encoded, width=width, height=height)


def _check_kind(field: str, opened: Image.Image) -> None:
    """Raise RowError for an image that Pillow would silently spoil or read only in part."""
    # Photographs of some phones are JPEGs followed by a second image (MPO), which is not another frame.
    if opened.format in ("PNG", "WEBP") and getattr(opened, "is_animated", False):
        raise RowError(
            "animated_image", f"`{field}` has several frames; save the one that is meant as a single image"
        )
    if field != "depth_map" and opened.mode.startswith("I"):
        # Pillow 13 makes every value from 255 on white.
        raise RowError(
            "image_mode", f"`{field}` has one channel of 16 bits or more; save it with 8 bits per channel"
        )


def _invalid_image(field: str, error: Exception) -> RowError:
    if isinstance(error, UnidentifiedImageError):
        # Pillow's own message has a memory address, and a part's bytes must not differ between attempts.
        return RowError(
            "invalid_image", f"`{field}` is not an image of a supported format ({', '.join(FORMATS)})"
        )
    return RowError("invalid_image", f"`{field}` is damaged: {error}")


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _orientation(opened: Image.Image, data: bytes) -> int:
    """EXIF's Orientation, 1 to 8; 1 (upright) where there is none."""
    if opened.format == "PNG" and not _has_exif_chunk_behind_pixels(data):
        # Pillow 13's getexif for PNG decodes the whole image first, to find chunks behind the pixels.
        orientation = Image.Image.getexif(opened).get(0x0112, 1)
    else:
        orientation = opened.getexif().get(0x0112, 1)
    # Other numbers turn nothing, so they must not change the sides either.
    return orientation if orientation in _TURNS else 1


def _has_exif_chunk_behind_pixels(png: bytes) -> bool:
    """Whether a chunk that may have EXIF comes after the first chunk of pixels: the header then lacks it."""
    offset, in_pixels = len(_PNG_SIGNATURE), False
    while offset + 8 <= len(png):
        size, name = struct.unpack_from(">I4s", png, offset)
        in_pixels |= name == b"IDAT"
        if in_pixels and name in _EXIF_CHUNKS:
            return True
        offset += size + 12  # with the length, the name and the checksum
    return False


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode != "I;16" or image.mode == mode:
        return image.convert(mode)
    if image.mode == "I":
        return Image.fromarray(np.asarray(image).clip(0, 65535).astype(np.uint16))
    # Eight bits are spread over sixteen, so that white stays the greatest depth.
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
