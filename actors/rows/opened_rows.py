"""Rows with their images opened and checked against what the row's steps need."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from actors.images.input_images import EncodedImage, ReadUri, open_image
from actors.rows.routing import ResolvedRoute, SizeLimits
from actors.rows.row import Row
from schemas.errors import RowError
from schemas.systems.system_table import LEAST_SIZE_FACTOR, System


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRow:
    """A row that can be generated, with the headers of its images read."""

    row: Row
    route: ResolvedRoute
    """The row's route."""
    images: Mapping[str, EncodedImage]
    """By field, the images of the row that the steps of its chain read."""


def open_row(row: Row, read_uri: ReadUri, *, limits: SizeLimits, vae_factor: int) -> OpenedRow:
    """The row with its images opened; RowError where one is missing or cannot be used.

    `limits` are those of the job; `vae_factor`: the model's pixels per latent.
    """
    route = row.route
    assert isinstance(route, ResolvedRoute), "rows with a problem are not opened"
    optional = (name for name in route.optional_images() if name in row.images)
    images = {
        field: open_image(field, row.images[field], read_uri)
        for field in dict.fromkeys((*route.needed_images(), *optional))
    }
    opened = OpenedRow(row=row, route=route, images=images)
    _check_sizes(images.get("image"), route.system, vae_factor if route.system.rounds_image_down else 1)
    _check_mask(opened, max(vae_factor, LEAST_SIZE_FACTOR))
    _check_work(opened, limits)
    return opened


def _check_work(opened: OpenedRow, limits: SizeLimits) -> None:
    """Raise RowError where a model would work on too many pixels, or give an image too long for its file."""
    image, route = opened.images.get("image"), opened.route
    if image is None or "height" in route.defaults:  # Then the image does not decide the size.
        return
    if image.width * image.height * route.growth() ** 2 > limits.max_pixels:
        raise RowError(
            "image_too_large",
            f"`image` is {image.width}x{image.height}, the size at which {route.name} works or begins; "
            f"input.max_pixels allows {limits.max_pixels:,} pixels",
        )
    if max(image.width, image.height) * route.total_growth() > limits.max_side:
        raise RowError(
            "image_too_large",
            f"`image` is {image.width}x{image.height}, and the result is {route.total_growth()} times as "
            f"large: {limits.too_long}",
        )


def _check_sizes(image: EncodedImage | None, system: System, min_side: int) -> None:
    if image and min(image.width, image.height) < min_side:
        raise RowError(
            "invalid_size",
            f"`image` is {image.width}x{image.height}; {system.task} needs at least {min_side} pixels a side",
        )
    multiple = system.image_multiple
    if image and (image.width % multiple or image.height % multiple):
        raise RowError(
            "invalid_size",
            f"`image` is {image.width}x{image.height}; {system.task} needs multiples of {multiple}",
        )


def _check_mask(opened: OpenedRow, size_factor: int) -> None:
    """Raise RowError where the mask does not have the size of the image that is painted over.

    Where an earlier step makes that image larger or smaller and nothing is cropped, a mask of the size of the
    row's own image is also accepted.
    """
    mask = opened.images.get("mask_image")
    if mask is None:
        return
    image, painting_step = opened.images.get("image"), _painting_step(opened.route)
    painted = _painted_size(opened, painting_step, size_factor)
    step = opened.route.steps[painting_step]
    parameters = step.defaults if painting_step else opened.row.parameters
    # diffusers 0.42.1 resizes masks, but computes the crop from the mask as it is given.
    cropped = parameters.get("padding_mask_crop") is not None
    sizes = {painted} if image is None or cropped else {painted, (image.width, image.height)}
    if (mask.width, mask.height) not in sizes:
        which = f"that step {painting_step + 1} is given" if painting_step else "that is painted over"
        raise RowError(
            "mask_size",
            f"the mask must have the size of the image {which}, {painted[0]}x{painted[1]}; "
            f"`mask_image` is {mask.width}x{mask.height}",
        )


def _painting_step(route: ResolvedRoute) -> int:
    """The index of the first step that takes a mask."""
    return next(i for i, step in enumerate(route.steps) if "mask_image" in step.system.images)


def _painted_size(opened: OpenedRow, painting_step: int, size_factor: int) -> tuple[int, int]:
    """(width, height) of the image that the painting step is given."""
    before = [step.system for step in opened.route.steps[:painting_step]]
    if not before:
        return opened.images["image"].width, opened.images["image"].height
    if "height" in before[0].defaults:
        width, height = (int(str(opened.row.parameters[side])) for side in ("width", "height"))
    else:
        image = opened.images["image"]
        # The first step rounds it down.
        width, height = (side // size_factor * size_factor for side in (image.width, image.height))
    growth = math.prod(system.scale for system in before)
    return width * growth, height * growth
