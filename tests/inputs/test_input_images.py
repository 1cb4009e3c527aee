"""Facts about opening the images of rows: how they are turned, what is refused, and where they wait."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.images.encoding import encode
from actors.images.image_uris import ImageUris
from actors.images.input_images import (
    MAX_IMAGE_FILE_BYTES,
    MAX_PIXELS,
    MAX_SCANS,
    EncodedImage,
    ImageSource,
    open_image,
)
from actors.images.spool import Encoded
from actors.storage.local_disk import LocalStorage
from actors.storage.stores import Stores
from schemas.errors import RowError, StorageError
from tests.support.in_process import encoded, png_of

UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
"""Two lines of three pixels: no two of its eight turns are equal."""
AS_STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT[:, ::-1].T,
    7: UPRIGHT[::-1, ::-1].T,
    8: UPRIGHT[::-1].T,
}
"""The same image as a camera stores it that then asks for this Orientation (Exif 2.32, table 6)."""


def file_of(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    data: bytes = encoded(image, image_format, **options)["bytes"]
    return data


def opened(data: Encoded, field: str = "image") -> EncodedImage:
    """Open an image that a row has itself."""
    return open_image(field, ImageSource(data=data, uri=None), lambda uri: b"")


def refusal(data: bytes, field: str = "image") -> RowError:
    """The error with which an image is refused, when it is opened or decoded."""
    with pytest.raises(RowError) as caught:
        opened(data, field).decode()
    return caught.value


@pytest.mark.parametrize("orientation", AS_STORED)
@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("field", ["image", "mask_image", "depth_map"])
def test_every_image_is_turned_upright(orientation: int, image_format: str, field: str) -> None:
    """Masks and depth maps as well as images, in each of EXIF's eight turns; header and pixels agree."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(AS_STORED[orientation])).convert("RGB")

    image = opened(file_of(stored, image_format, exif=exif, lossless=True), field)

    decoded = np.asarray(image.decode())
    grey = decoded[..., 0] if field == "image" else decoded // (257 if field == "depth_map" else 1)
    assert (image.width, image.height) == (3, 2)
    assert grey.tolist() == UPRIGHT.tolist()


@pytest.mark.parametrize(("kind", "value"), [("H", 0), ("H", 9), ("H", 65535), ("4s", b"six")])
def test_an_orientation_that_is_none_turns_nothing(kind: str, value: object) -> None:
    """Cameras and editors write all kinds of things: a text, or a number that EXIF does not have."""
    kinds = {"H": 3, "4s": 2}
    entry = struct.pack(f"<HHI{kind}", 0x0112, kinds[kind], {"H": 1, "4s": 4}[kind], value)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry.ljust(12, b"\0") + bytes(4)

    image = opened(file_of(Image.fromarray(UPRIGHT), exif=exif))

    assert image.decode().size == (image.width, image.height) == (3, 2)


def test_the_largest_image_is_opened_and_no_larger_one() -> None:
    """By the number of its pixels, whatever its shape."""
    largest = opened(png_of(8192, 8192))

    assert largest.width * largest.height == MAX_PIXELS
    assert refusal(png_of(8193, 8192)).code == refusal(png_of(8192, 8193)).code == "image_too_large"


def test_a_jpeg_may_have_the_most_scans() -> None:
    """One more is refused."""
    data = file_of(Image.new("RGB", (8, 8)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    missing = MAX_SCANS - data.count(b"\xff\xda")

    most = data[:-2] + missing * scan + data[-2:]

    assert opened(most).width == 8
    assert "more than 500 scans" in refusal(data[:-2] + (missing + 1) * scan + data[-2:]).message


@pytest.mark.parametrize(
    ("pixels", "depths"),
    [
        (np.array([[0, 255, 7]], np.uint8), [0, 65535, 7 * 257]),
        (np.array([[0, 65535, 7]], np.uint16), [0, 65535, 7]),
    ],
)
def test_a_depth_map_has_sixteen_bits(pixels: np.ndarray[Any, Any], depths: list[int]) -> None:
    """White in eight bits is the greatest depth."""
    decoded = opened(file_of(Image.fromarray(pixels)), "depth_map").decode()

    assert decoded.mode == "I;16"
    assert np.asarray(decoded).ravel().tolist() == depths


def test_an_image_of_sixteen_bits_is_refused_where_it_would_turn_white() -> None:
    """As an image and as a mask."""
    data = file_of(Image.fromarray(np.full((2, 3), 40_000, np.uint16)))

    assert refusal(data).code == refusal(data, "mask_image").code == "image_mode"


def test_masks_are_grey_and_images_have_colours() -> None:
    """Whatever the file has."""
    data = file_of(Image.new("RGBA", (3, 2), "aqua"))

    assert [opened(data, field).decode().mode for field in ("image", "mask_image")] == ["RGB", "L"]


def marked(mode: str, background: Any, mark: Any) -> Image.Image:
    """An image of one colour with one pixel of another one."""
    image = Image.new(mode, (8, 8), background)
    image.putpixel((3, 4), mark)
    return image


PALETTE = Image.new("P", (8, 8), 1)
PALETTE.putpalette([0, 0, 0, 60, 60, 60])


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (marked("L", 0, 0), "its greatest value is 0, and only pixels of 128 or more are repainted; paint"),
        (marked("L", 0, 127), "its greatest value is 127,"),
        (marked("L", 0, 1), "multiply its values by 255"),
        (marked("RGB", (0, 0, 0), (255, 0, 0)), "its greatest value is 76,"),
        (marked("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)), "its alpha channel marks an area: save that channel"),
        (marked("LA", (9, 255), (9, 0)), "its alpha channel marks an area"),
        (marked("RGBA", (0, 0, 0, 255), (0, 0, 0, 255)), "paint the area that is to change white"),
        (PALETTE, "its greatest value is 60,"),
    ],
    ids=["black", "too dark", "0 and 1", "red scribble", "alpha", "grey with alpha", "opaque", "palette"],
)
def test_a_mask_that_marks_nothing_is_refused_with_what_it_has(mask: Image.Image, says: str) -> None:
    """diffusers would return the input image as the result."""
    with pytest.raises(RowError) as refused:
        opened(file_of(mask), "mask_image").decode()

    assert refused.value.code == "empty_mask"
    assert says in refused.value.message


def test_a_mask_marks_from_128_on_and_an_image_may_be_dark() -> None:
    """One pixel is enough, and a picture of the night is a picture."""
    mask = opened(file_of(marked("L", 0, 128)), "mask_image").decode()
    night = opened(file_of(marked("RGB", (0, 0, 0), (9, 9, 9)))).decode()

    assert (mask.getextrema(), night.getextrema()) == ((0, 128), ((0, 9), (0, 9), (0, 9)))


def test_bytes_beside_a_path_are_the_image() -> None:
    """As in datasets that keep the name of the file that the bytes come from."""
    data = file_of(Image.fromarray(UPRIGHT))
    read: list[str] = []

    image = open_image("image", ImageSource(data=data, uri="a.png"), lambda uri: read.append(uri) or data)

    assert (image.data, read) == (data, [])


def test_a_known_problem_is_the_row_s() -> None:
    """Nothing is opened then."""
    problem = RowError("image_too_large", "256 MB")

    with pytest.raises(RowError) as caught:
        open_image("image", ImageSource(data=None, uri=None, problem=problem), lambda uri: b"")

    assert caught.value is problem


def test_equal_faults_have_equal_messages() -> None:
    """A part's bytes may not differ between two attempts."""
    assert refusal(b"<svg/>").message == refusal(b"<svg/>").message
    assert "0x" not in refusal(b"<svg/>").message


def test_a_file_that_breaks_off_among_its_pixels_is_damaged() -> None:
    """Pillow calls it a SyntaxError; the header alone does not tell."""
    data = bytearray(file_of(Image.effect_noise((400, 400), 50)))
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    data[second : second + 4] = bytes(4)

    whole = opened(bytes(data))

    with pytest.raises(RowError, match="invalid_image"):
        whole.decode()


def test_what_a_row_may_read_is_read_and_nothing_that_is_too_large(tmp_path: Path) -> None:
    """A relative path begins in the folder of the row's file; links count as what they lead to."""
    rows, beside, linked = tmp_path / "rows", tmp_path / "rows-2", tmp_path / "linked"
    for folder in (rows, beside):
        folder.mkdir()
        (folder / "a.png").write_bytes(folder.name.encode())
    linked.symlink_to(rows)
    (rows / "out.png").symlink_to(beside / "a.png")
    with (rows / "huge.png").open("wb") as huge:
        huge.truncate(MAX_IMAGE_FILE_BYTES + 1)
    read = ImageUris(Stores()).reader(f"{rows}/in.parquet")

    def code(uri: str) -> str:
        with pytest.raises(RowError) as caught:
            read(uri)
        return caught.value.code

    assert read("a.png") == b"rows"
    assert read(f"{linked}/a.png") == b"rows"
    assert ImageUris(Stores()).reader(f"{linked}/in.parquet")("a.png") == b"rows"
    both = ImageUris(Stores(), ["s3://elsewhere", str(tmp_path / "none"), str(beside)])
    assert both.reader(f"{rows}/in.parquet")(f"{beside}/a.png") == b"rows-2"
    assert code("huge.png") == "image_too_large"
    assert code(f"{beside}/a.png") == code("out.png") == code("../rows-2/a.png") == "disallowed_uri"
    assert code("gone.png") == "unreadable_uri"


def test_a_store_that_refuses_is_no_rows_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that expire, or a network that is down, would otherwise fail every row that is read."""
    (tmp_path / "a.png").write_bytes(b"x")

    def refuse(self: LocalStorage, uri: str, max_bytes: int | None = None) -> bytes:
        raise StorageError(f"{uri}: get_object was refused: AccessDenied (HTTP 403)")

    monkeypatch.setattr(LocalStorage, "read", refuse)

    with pytest.raises(StorageError, match="HTTP 403"):
        ImageUris(Stores()).reader(f"{tmp_path}/in.parquet")("a.png")


@pytest.mark.parametrize(("image_format", "lossless"), [("png", True), ("webp", True), ("jpeg", False)])
def test_images_are_stored_in_the_quality_that_the_spec_tells(image_format: str, lossless: bool) -> None:
    """PNG and WebP change nothing; JPEG of quality 95 keeps the colour of each pixel."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)

    data = encode(pixels, image_format)

    with Image.open(io.BytesIO(data)) as image:
        assert image.format == image_format.upper()
        stored = np.asarray(image.convert("RGB")).astype(int)
        layers = getattr(image, "layer", [])
    assert encode(pixels.copy(), image_format) == data
    assert np.array_equal(stored, pixels) == lossless
    assert np.abs(stored - pixels).max() <= 20
    assert all(layer[1:3] == (1, 1) for layer in layers)
