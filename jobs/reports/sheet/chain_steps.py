"""The steps of a chain, as the contact sheet shows them beside the chain's result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.rows.routing import AnyRoute, ResolvedRoute
from jobs.reports.sheet.thumbnails import Thumbnail

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainStep:
    """One step of a chain."""

    route: str
    """The name of its route."""
    task: str
    model: str
    width: int | None
    height: int | None
    """The size of its result in pixels; None where the output does not tell it."""
    thumbnail: str | None
    """Its result as a data: URI. None for the last step, which made the frame's own image, and where the
    output does not have it.
    """


def chain_steps(
    route: AnyRoute, record: Mapping[str, Any], images: Sequence[Thumbnail]
) -> tuple[ChainStep, ...]:
    """The steps of an output row's chain in order; none for a row of one step.

    `images`: those of the steps before the last one; none if the output has not kept them.
    """
    if not isinstance(route, ResolvedRoute) or not route.then:
        return ()
    kept: list[Thumbnail | None] = (
        [*images, None] if len(images) == len(route.then) else [None] * len(route.steps)
    )
    sizes = _sizes(route, record)
    return tuple(map(_chain_step, route.steps, sizes, kept))


def _chain_step(step: ResolvedRoute, told: Size | None, image: Thumbnail | None) -> ChainStep:
    """A step whose result has the size of its image, or the one `told` by later steps."""
    width, height = (image and image.size) or told or (None, None)
    return ChainStep(
        route=step.name,
        task=step.system.task,
        model=step.model,
        width=width,
        height=height,
        thumbnail=image.uri if image else None,
    )


def _sizes(route: ResolvedRoute, record: Mapping[str, Any]) -> list[Size | None]:
    """The size of each step's result, told backwards from the last one's; None where that is not possible."""
    size = (record["width"], record["height"]) if record["width"] and record["height"] else None
    sizes = [size]
    for step in reversed(route.then):
        # With a size of its own, a step says nothing about the image that it was given.
        has_own_size = step.defaults.get("height") is not None or step.defaults.get("width") is not None
        if size:
            size = None if has_own_size else (size[0] // step.system.scale, size[1] // step.system.scale)
        sizes.insert(0, size)
    return sizes
