"""Rows with their images opened and checked against what the row's steps need."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from actors.images.input_images import EncodedImage, ReadUri, open_image
from actors.rows.routing import ResolvedRoute, SizeLimits
from actors.rows.row import Row
from actors.rows.step_sizes import Size, is_cropped, later_sizes, result_size, work_size
from schemas.errors import RowError
from schemas.systems.control_parameters import CONTROL_IMAGES, control_images
from schemas.systems.image_prompts import IMAGE_PROMPT, image_prompt_of
from schemas.systems.parameters import ParameterValue
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
    optional = (name for name in route.optional_images() if name in row.images and _is_read(row, name))
    images = {
        field: open_image(field, row.images[field], read_uri)
        for field in dict.fromkeys((*route.needed_images(), *optional))
    }
    opened = OpenedRow(row=row, route=route, images=images)
    _check_sizes(images.get("image"), route.system, vae_factor if route.system.rounds_image_down else 1)
    _check_mask(opened, max(vae_factor, LEAST_SIZE_FACTOR))
    _check_control_image(opened)
    _check_work(opened, limits)
    return opened


def _check_control_image(opened: OpenedRow) -> None:
    """Raise RowError where a control image would be cropped elsewhere than the image is.

    diffusers 0.42.1 computes the crop from the mask, and takes the same pixels of all images.
    """
    control, mask = (opened.images.get(field) for field in (CONTROL_IMAGES[0], "mask_image"))
    is_cropping = any(is_cropped(each) for each in (opened.row.parameters, *_later(opened.route)))
    if control and mask and is_cropping and (control.width, control.height) != (mask.width, mask.height):
        raise RowError(
            "invalid_size",
            f"`control_image` is {control.width}x{control.height}; with padding_mask_crop it must have the "
            f"size of the mask, {mask.width}x{mask.height}",
        )


def _later(route: ResolvedRoute) -> Iterator[Mapping[str, ParameterValue | None]]:
    """The parameters of the steps after the first."""
    return (step.defaults for step in route.then)


def _is_read(row: Row, field: str) -> bool:
    """Whether the row's chain reads this optional image: those for adapters only if it has such."""
    assert isinstance(row.route, ResolvedRoute), "rows with a problem are not opened"
    steps = (row.parameters, *_later(row.route))
    if field == IMAGE_PROMPT:
        return any(map(image_prompt_of, steps))
    if field not in CONTROL_IMAGES:
        return True
    return any(field in control_images(each, row.images) for each in steps)


def _check_work(opened: OpenedRow, limits: SizeLimits) -> None:
    """Raise RowError where a model would work on too many pixels, or give an image too long for its file."""
    image = opened.images.get("image")
    if image is None:  # Then the plan has checked all sizes.
        return
    works, result = work_sizes(opened)
    for step, size in zip(opened.route.steps, works, strict=True):
        if size[0] * size[1] > limits.max_pixels:
            raise RowError(
                "image_too_large",
                f"`image` is {image.width}x{image.height}, and {step.name} works on {_shown(size)}; "
                f"input.max_pixels allows {limits.max_pixels:,} pixels",
            )
    if max(result) > limits.max_side:
        raise RowError(
            "image_too_large",
            f"`image` is {image.width}x{image.height}, and the result is {_shown(result)}: {limits.too_long}",
        )


def work_sizes(opened: OpenedRow) -> tuple[list[Size], Size]:
    """The sizes at which the steps of a row's chain work, and that of its result."""
    image, route, own = opened.images.get("image"), opened.route, opened.row.parameters
    given = (float(image.height), float(image.width)) if image else (0.0, 0.0)
    *works, result = [work_size(own, given), *later_sizes(route, result_size(route.system, own, given))]
    return works, result


def _shown(size: Size) -> str:
    return f"{size[1]:.0f}x{size[0]:.0f}"


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
    row's own image is also accepted. Where the image is resized, any mask is.
    """
    mask = opened.images.get("mask_image")
    if mask is None:
        return
    image, painting_step = opened.images.get("image"), _painting_step(opened.route)
    step = opened.route.steps[painting_step]
    parameters = step.defaults if painting_step else opened.row.parameters
    # diffusers 0.42.1 resizes masks, but computes the crop from the mask as it is given.
    cropped = is_cropped(parameters)
    if not cropped and None not in (parameters.get("height"), parameters.get("width")):
        return  # It resizes the image too, so neither has to fit the other.
    painted = _painted_size(opened, painting_step, size_factor)
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
    image = opened.images.get("image")
    size: Size = (0, 0) if image is None else (image.height, image.width)
    for number, step in enumerate(opened.route.steps[:painting_step]):
        if not number:  # The first step rounds its image down.
            size = size[0] // size_factor * size_factor, size[1] // size_factor * size_factor
        size = result_size(step.system, step.defaults if number else opened.row.parameters, size)
    return int(size[1]), int(size[0])
