"""Image files as rows have them: whole ones, and ones that are not what they say."""

import struct
import zlib
from typing import Any

from PIL import Image

from tests.support.in_process import encoded


def file_of(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    data: bytes = encoded(image, image_format, **options)["bytes"]
    return data


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header has this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    line = bytes(1 + width)
    data = b"".join(packer.compress(line) for _ in range(min(height, 100))) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
