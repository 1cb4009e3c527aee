"""The judge: says what a picture shows, by counting pixels. It has never seen a model."""

from dataclasses import dataclass

import numpy as np

from tools.shapes import world
from tools.shapes.world import COLOURS, POSITIONS, RADII, SHAPES, SIZE, Array

FRAME = 2
"""Pixels along the edges that tell the background."""
COLOUR_TOLERANCE = 60.0
"""How far a colour may lie from the one it is called, of 442 between black and white."""
SHAPE_TOLERANCE = 0.72
"""The least overlap with a drawn shape (shared area by joint area) that earns its name."""
LEAST_AREA = 40.0
"""Pixels; what is smaller is a speck."""
NUMBERS = np.arange(len(SHAPES))
MIDDLES = np.full((len(SHAPES), 2), SIZE / 2, dtype=np.float32)
AREA_AT_10 = world.coverage(NUMBERS, MIDDLES, np.full(len(SHAPES), 10, dtype=np.float32)).sum((1, 2))
SIZE_BORDER = (RADII["small"][1] + RADII["big"][0]) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a picture shows; None where it shows nothing that has a name."""

    background: str | None
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    position: str | None = None
    centre: tuple[float, float] | None = None
    """The shape's centre of gravity, pixels from the left and from the top."""
    radius: float = 0.0
    overlap: float = 0.0
    """With the drawn shape that fits best: shared area by joint area."""


def look(picture: Array) -> Seen:
    """What a picture of (64, 64, 3) bytes shows."""
    pixels = picture.astype(np.float32)
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
    """The name of the nearest colour, if one is near."""
    distances = {name: float(np.linalg.norm(colour - np.array(known))) for name, known in COLOURS.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] <= COLOUR_TOLERANCE else None


def _frame_colour(pixels: Array) -> Array:
    """The commonest colour along the edges; a shape may touch one of them."""
    frame = np.ones((SIZE, SIZE), dtype=bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    return np.median(pixels[frame], axis=0)


def _object(pixels: Array, ground: Array) -> tuple[Array, Array]:
    """How much of each pixel is not background, in [0, 1], and the colour of what is not."""
    away = np.linalg.norm(pixels - ground, axis=2)
    # The middle half of what differs most: neither the blurred edge nor a stray pixel.
    ordered = np.sort(away[away > 30])
    if len(ordered) < LEAST_AREA / 2:
        return np.zeros((SIZE, SIZE)), ground
    body = away >= 0.75 * ordered[int(0.75 * len(ordered))]
    colour = np.median(pixels[body], axis=0)
    line = colour - ground
    inside = ((pixels - ground) @ line / (line @ line)).clip(0, 1)
    # With the contrast doubled, neither a faint stain nor a blurred edge counts for much.
    return (2 * inside - 0.5).clip(0, 1), colour


def _compare(inside: Array, x: float, y: float) -> tuple[Array, Array]:
    """The overlap with each shape drawn at that place with that area, and the radius that it needs."""
    radii = (10 * np.sqrt(inside.sum() / AREA_AT_10)).astype(np.float32)
    places = np.full((len(SHAPES), 2), (x, y), dtype=np.float32)
    drawn = world.coverage(NUMBERS, places, radii)
    return np.minimum(drawn, inside).sum((1, 2)) / np.maximum(drawn, inside).sum((1, 2)), radii


def _name_position(x: float, y: float) -> str | None:
    """The nearest position, if it is nearer than half way to the next."""
    distances = {name: float(np.hypot(x - left, y - top)) for name, (left, top) in POSITIONS.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < 6.5 else None
