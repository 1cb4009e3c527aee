"""Facts about opening a row: the headers of its images decide whether its steps can take them."""

from typing import Any

import pytest

from actors.images.input_images import ImageSource
from actors.rows.opened_rows import OpenedRow, open_row
from actors.rows.routing import ResolvedRoute, Router, SizeLimits
from actors.rows.row import Row
from schemas.errors import RowError
from schemas.spec.job_spec import JobSpec
from tests.support.checkpoints import model_card
from tests.support.in_process import png_of

MODELS = {
    name: model_card(family=family)
    for name, family in {
        "sd": "sd",
        "x2": "latent-upscale",
        "x4": "upscale",
        "rgbd-up": "ldm3d-upscale",
        "deep": "depth2img",
    }.items()
}
ROUTES: dict[str, Any] = {
    "text2img": {"model": "sd", "height": 64, "width": 128},
    "img2img": {"model": "sd"},
    "inpaint": {"model": "sd"},
    "cropped": {"task": "inpaint", "model": "sd", "padding_mask_crop": 0},
    "upscale": {"model": "x4"},
    "latent_upscale": {"model": "x2"},
    "ldm3d_upscale": {"model": "rgbd-up", "height": 32, "width": 64},
    "depth2img": {"model": "deep"},
    "filled": {"task": "text2img", "model": "sd", "then": ["inpaint"]},
    "mended": {"task": "img2img", "model": "sd", "then": ["inpaint"]},
    "mended-cropped": {"task": "img2img", "model": "sd", "then": ["cropped"]},
    "twice": {"task": "inpaint", "model": "sd", "then": ["cropped"]},
    "enlarged": {"task": "upscale", "model": "x4", "then": ["inpaint"]},
    "resized": {"task": "inpaint", "model": "sd", "height": 64, "width": 32},
    "resized-crop": {"task": "inpaint", "model": "sd", "height": 64, "width": 32, "padding_mask_crop": 0},
    "resized-grown": {
        "task": "inpaint",
        "model": "sd",
        "height": 64,
        "width": 32,
        "then": ["upscale", "img2img"],
    },
    "crop-grown": {"task": "inpaint", "model": "sd", "padding_mask_crop": 0, "then": ["upscale", "img2img"]},
    "resized-long": {"task": "inpaint", "model": "sd", "height": 8, "width": 4_096, "then": ["upscale"]},
    "late": {"task": "img2img", "model": "sd", "then": ["resized", "img2img"]},
    "late-cropped": {"task": "img2img", "model": "sd", "then": ["resized-crop"]},
    "grown": {"task": "img2img", "model": "sd", "then": ["upscale", "latent_upscale"]},
}
SPEC = JobSpec.model_validate(
    {
        "version": 1,
        "name": "opened",
        "input": {"path": "x"},
        "models": {name: {"checkpoint": "a/b"} for name in MODELS},
        "routes": ROUTES,
        "output": {"path": "out"},
    }
)
BROKEN = (0, 0)
"""The size of an image that cannot be opened."""

Size = tuple[int, int]
LIMITS = SizeLimits(2**20, "png")


def opened(task: str, images: dict[str, Size], limits: SizeLimits = LIMITS, **own: Any) -> OpenedRow:
    """Open a row with images of these sizes (width, height) and these parameters of its own."""
    route = Router(SPEC, MODELS).resolve(task, None)
    assert isinstance(route, ResolvedRoute)
    sources = {
        field: ImageSource(data=b"broken" if size == BROKEN else png_of(*size), uri=None)
        for field, size in images.items()
    }
    row = Row(
        index=0,
        row_id="r",
        route=route,
        texts={"prompt": "x"},
        images=sources,
        seed=0,
        num_images=1,
        parameters={**route.defaults, **own},
        keep={},
        problem=None,
    )
    return open_row(row, lambda uri: b"", limits=limits, vae_factor=8)


def code(task: str, images: dict[str, Size], limits: SizeLimits = LIMITS, **own: Any) -> str | None:
    """The code of the error with which the row is refused; None where it is opened."""
    try:
        opened(task, images, limits, **own)
    except RowError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("task", "size", "expected"),
    [
        ("img2img", (8, 8), None),
        ("img2img", (7, 64), "invalid_size"),
        ("img2img", (64, 7), "invalid_size"),
        ("depth2img", (64, 7), "invalid_size"),
        ("upscale", (64, 7), "invalid_size"),
        ("latent_upscale", (64, 128), None),
        ("latent_upscale", (64, 72), "invalid_size"),
        ("latent_upscale", (72, 64), "invalid_size"),
    ],
)
def test_an_image_has_sides_that_its_pipeline_can_take(task: str, size: Size, expected: str | None) -> None:
    """The least is one latent where the pipeline rounds down, and multiples where it does not."""
    assert code(task, {"image": size}) == expected


def test_an_image_to_paint_over_may_be_smaller_than_a_latent() -> None:
    """Inpainting enlarges it itself."""
    assert code("inpaint", {"image": (1, 3), "mask_image": (1, 3)}) is None


@pytest.mark.parametrize(
    ("task", "size", "max_pixels", "expected"),
    [
        ("img2img", (64, 32), 64 * 32, None),
        ("img2img", (64, 33), 64 * 32, "image_too_large"),
        ("grown", (64, 32), 16 * 64 * 32, None),
        ("grown", (64, 33), 16 * 64 * 32, "image_too_large"),
        ("ldm3d_upscale", (64, 33), 64 * 32, None),
        ("ldm3d_upscale", (64, 33), 64 * 32 - 1, "image_too_large"),
        # The size that the route sets counts, from that step on, and not the image's.
        ("resized", (640, 330), 64 * 32, None),
        ("resized", (8, 8), 64 * 32 - 1, "image_too_large"),
        ("resized-grown", (8, 8), 16 * 64 * 32, None),
        ("resized-grown", (8, 8), 16 * 64 * 32 - 1, "image_too_large"),
        ("late", (40, 40), 64 * 32, None),
        ("late", (40, 40), 64 * 32 - 1, "image_too_large"),
        ("late", (80, 40), 64 * 32, "image_too_large"),
        # A crop is pasted back into the image, which keeps its size.
        ("resized-crop", (640, 330), 64 * 32, None),
        ("crop-grown", (40, 40), 16 * 40 * 40, None),
        ("crop-grown", (40, 40), 16 * 40 * 40 - 1, "image_too_large"),
    ],
)
def test_no_step_works_on_more_pixels_than_the_spec_allows(
    task: str, size: Size, max_pixels: int, expected: str | None
) -> None:
    """A chain grows in both directions; where height and width decide, the image's size does not count."""
    images = {"image": size, "depth_map": size, "mask_image": size}

    assert code(task, images, SizeLimits(max_pixels, "png")) == expected


@pytest.mark.parametrize(
    ("task", "size", "image_format", "expected"),
    [
        ("img2img", (16_383, 64), "webp", None),
        ("img2img", (16_384, 64), "webp", "image_too_large"),
        ("img2img", (64, 16_384), "webp", "image_too_large"),
        ("img2img", (16_384, 64), "jpeg", None),
        ("upscale", (4_095, 8), "webp", None),
        ("upscale", (8, 4_096), "webp", "image_too_large"),
        ("upscale", (16_376, 8), "jpeg", "image_too_large"),
        ("upscale", (16_376, 8), "png", None),
        ("resized-long", (8, 8), "jpeg", None),
        ("resized-long", (8, 8), "webp", "image_too_large"),
        ("resized-crop", (16_384, 8), "webp", "image_too_large"),
    ],
)
def test_no_result_is_longer_than_its_file_can_hold(
    task: str, size: Size, image_format: str, expected: str | None
) -> None:
    """An upscaler's is four times as long as its image; a crop's is as long as the row's own image."""
    images = {"image": size, "mask_image": size}

    assert code(task, images, SizeLimits(2**24, image_format)) == expected


@pytest.mark.parametrize(
    ("task", "image", "mask", "own", "expected"),
    [
        ("inpaint", (40, 24), (40, 24), {}, None),
        ("inpaint", (40, 24), (24, 40), {}, "mask_size"),
        ("inpaint", (40, 24), (40, 32), {"padding_mask_crop": 8}, "mask_size"),
        # With a height and a width the image is resized as the mask is, unless the mask says where to crop.
        ("resized", (40, 24), (24, 40), {}, None),
        ("inpaint", (40, 24), (24, 40), {"height": 8, "width": 8}, None),
        ("inpaint", (40, 24), (24, 40), {"height": 8}, "mask_size"),
        ("resized-crop", (40, 24), (40, 24), {}, None),
        ("resized-crop", (40, 24), (32, 64), {}, "mask_size"),
        ("late", (40, 24), (24, 40), {}, None),
        ("late-cropped", (70, 90), (64, 88), {}, None),
        ("late-cropped", (70, 90), (32, 64), {}, "mask_size"),
        ("filled", None, (96, 40), {"width": 96, "height": 40}, None),
        ("filled", None, (40, 96), {"width": 96, "height": 40}, "mask_size"),
        ("filled", None, (128, 64), {"width": 96, "height": 40}, "mask_size"),
        ("mended", (70, 90), (64, 88), {}, None),
        ("mended", (70, 90), (70, 90), {}, None),
        ("mended", (70, 90), (90, 70), {}, "mask_size"),
        ("mended", (70, 90), (72, 96), {}, "mask_size"),
        # What a row sets counts for its first step; how the mask is used is a matter of the step that paints.
        ("mended", (70, 90), (70, 90), {"padding_mask_crop": 8}, None),
        ("mended-cropped", (70, 90), (64, 88), {}, None),
        ("mended-cropped", (70, 90), (70, 90), {}, "mask_size"),
        ("twice", (70, 90), (70, 90), {}, None),
        ("enlarged", (16, 24), (64, 96), {}, None),
        ("enlarged", (16, 24), (16, 24), {}, None),
        ("enlarged", (16, 24), (32, 48), {}, "mask_size"),
    ],
)
def test_a_mask_has_the_size_of_the_image_that_it_is_laid_on(
    task: str, image: Size | None, mask: Size, own: dict[str, int], expected: str | None
) -> None:
    """Or of the row's own image, where an earlier step makes another one of it and nothing is cropped."""
    images = {"mask_image": mask} | ({"image": image} if image else {})

    assert code(task, images, **own) == expected


def test_only_images_that_a_step_reads_are_opened() -> None:
    """An image of no use to the row's task may be broken; one that may be null is read if it is there."""
    assert opened("text2img", {"image": BROKEN}).images == {}
    assert [*opened("depth2img", {"image": (64, 64), "mask_image": BROKEN}).images] == ["image"]
    both = opened("depth2img", {"image": (64, 64), "depth_map": (32, 32)}).images
    assert {field: (image.width, image.height) for field, image in both.items()} == {
        "image": (64, 64),
        "depth_map": (32, 32),
    }
    assert code("depth2img", {"image": (64, 64), "depth_map": BROKEN}) == "invalid_image"
