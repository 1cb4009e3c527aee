"""Rows with their images opened, and the images held against what the row's steps are given."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from actors.images.input_images import EncodedImage, ReadUri, open_image
from actors.rows.routing import Routed
from actors.rows.row import Row
from schemas.errors import RowError
from schemas.systems.system_table import LEAST_SIZE_FACTOR, System


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRow:
    """A row that can be made, with its pictures' headers read."""

    row: Row
    images: Mapping[str, EncodedImage]
    """By field; all that the row must bring, for every step of its chain."""


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
    _check_sizes(opened, system, vae_factor if system.rounds_image_down else 1)
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
    multiple = system.image_multiple
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
