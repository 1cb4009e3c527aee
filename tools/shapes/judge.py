"""The judge, which says what an image shows by counting pixels. It does not depend on any model."""

from dataclasses import dataclass

import numpy as np

from tools.shapes import world
from tools.shapes.world import COLOURS, POSITIONS, RADII, SHAPES, SIZE, Array

FRAME = 2
"""Width in pixels of the frame along the edges whose colour is the background's."""
COLOUR_TOLERANCE = 60.0
"""How far a colour may lie from a named colour; black and white are 442 apart."""
SHAPE_TOLERANCE = 0.72
"""The least overlap with a drawn shape (intersection over union) at which a shape gets its name."""
LEAST_AREA = 40.0
"""The least area of a shape, in pixels; anything smaller is a speck."""
NUMBERS = np.arange(len(SHAPES))
MIDDLES = np.full((len(SHAPES), 2), SIZE / 2, dtype=np.float32)
AREA_AT_10 = world.coverage(NUMBERS, MIDDLES, np.full(len(SHAPES), 10, dtype=np.float32)).sum((1, 2))
SIZE_BORDER = (RADII["small"][1] + RADII["big"][0]) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an image shows; None stands for a value that has no name."""

    background: str | None
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    position: str | None = None
    centre: tuple[float, float] | None = None
    """The shape's centre of gravity, in pixels from the left and from the top."""
    radius: float = 0.0
    """The shape's radius, in pixels."""
    overlap: float = 0.0
    """The overlap with the drawn shape that fits best: intersection over union."""


def look(image: Array) -> Seen:
    """What an image of (64, 64, 3) bytes shows."""
    pixels = image.astype(np.float32)
    ground = _frame_colour(pixels)
    background = name_colour(ground)
    inside, colour = _object(pixels, ground)
    area = float(inside.sum())
    if area < LEAST_AREA:
        return Seen(background=background)
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    x, y = float((inside.sum(0) * axis).sum() / area), float((inside.sum(1) * axis).sum() / area)
    overlaps, radii = _compare(inside, x, y)
    best = int(overlaps.argmax())
    return Seen(
        background=background,
        colour=name_colour(colour),
        shape=SHAPES[best] if overlaps[best] >= SHAPE_TOLERANCE else None,
        size="small" if radii[best] < SIZE_BORDER else "big",
        position=_name_position(x, y),
        centre=(x, y),
        radius=float(radii[best]),
        overlap=float(overlaps[best]),
    )


def name_colour(colour: Array) -> str | None:
    """The name of the nearest colour; None if no colour is near enough."""
    distances = {name: float(np.linalg.norm(colour - np.array(known))) for name, known in COLOURS.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] <= COLOUR_TOLERANCE else None


def _frame_colour(pixels: Array) -> Array:
    """The median colour of the frame along the edges; a shape may touch one of the edges."""
    frame = np.ones((SIZE, SIZE), dtype=bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    return np.median(pixels[frame], axis=0)


def _object(pixels: Array, ground: Array) -> tuple[Array, Array]:
    """How much of each pixel belongs to the shape, in [0, 1], and the shape's colour."""
    away = np.linalg.norm(pixels - ground, axis=2)
    # The pixels that differ most from the background. The limit leaves out the blurred edge, and because it
    # is relative to the upper quartile, no stray pixel sets it.
    ordered = np.sort(away[away > 30])
    if len(ordered) < LEAST_AREA / 2:
        return np.zeros((SIZE, SIZE)), ground
    body = away >= 0.75 * ordered[int(0.75 * len(ordered))]
    colour = np.median(pixels[body], axis=0)
    line = colour - ground
    inside = ((pixels - ground) @ line / (line @ line)).clip(0, 1)
    # With the contrast doubled, a faint stain or a blurred edge counts little.
    return (2 * inside - 0.5).clip(0, 1), colour


def _compare(inside: Array, x: float, y: float) -> tuple[Array, Array]:
    """The overlap with each shape when it is drawn at (x, y) with the same area, and its radius then."""
    radii = (10 * np.sqrt(inside.sum() / AREA_AT_10)).astype(np.float32)
    centres = np.full((len(SHAPES), 2), (x, y), dtype=np.float32)
    drawn = world.coverage(NUMBERS, centres, radii)
    return np.minimum(drawn, inside).sum((1, 2)) / np.maximum(drawn, inside).sum((1, 2)), radii


def _name_position(x: float, y: float) -> str | None:
    """The name of the nearest position; None if it is more than half-way to the next."""
    distances = {name: float(np.hypot(x - left, y - top)) for name, (left, top) in POSITIONS.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < 6.5 else None
