"""The world: a scene is a shape in one colour on a background in another. It is drawn or told by a prompt."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

SIZE = 64
"""Width and height of an image, in pixels."""
COLOURS = {
    "red": (225, 30, 35),
    "green": (30, 150, 60),
    "blue": (35, 70, 220),
    "yellow": (250, 220, 40),
    "orange": (250, 130, 15),
    "purple": (145, 40, 180),
    "white": (250, 250, 250),
    "black": (15, 15, 20),
}
NIGHT = "black"
"""The colour of every background at night."""
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
RADII = {"small": (8.0, 9.2), "big": (14.2, 15.8)}
"""The range of a shape's radius for each size, in pixels."""
POSITIONS = {"left": (19, 32), "right": (45, 32), "top": (32, 19), "bottom": (32, 45), "centre": (32, 32)}
"""The shape's centre of gravity for each position, in pixels from the left and from the top."""
JITTER = 1.5
"""How far a shape may be from its position in each direction, in pixels."""
HELD_OUT_OF = 5
"""One of this many combinations is never drawn for training."""

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The facts that an image shows."""

    shape: str
    colour: str
    background: str
    size: str
    position: str

    def is_held_out(self) -> bool:
        """Whether this combination is reserved for the judge: a checksum of its five words decides."""
        words = f"{self.size} {self.colour} {self.shape} {self.position} {self.background}"
        return zlib.crc32(words.encode()) % HELD_OUT_OF == 0


SCENES = tuple(
    Scene(shape=shape, colour=colour, background=background, size=size, position=position)
    for shape, colour, background, size, position in product(SHAPES, COLOURS, COLOURS, RADII, POSITIONS)
    if colour != background
)
TRAINING_SCENES = tuple(scene for scene in SCENES if not scene.is_held_out())
HELD_OUT_SCENES = tuple(scene for scene in SCENES if scene.is_held_out())

SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "big": ("big", "big", "large")}
TOLD = {"colour": 0.92, "size": 0.7, "position": 0.7, "background": 0.75}
"""The share of training prompts that tell each fact; the shape is always told."""
EMPTY_PROMPTS = 0.1
"""The share of training prompts that are empty."""
POSITION_WORDS = {
    "left": ("at the left", "on the left"),
    "right": ("at the right", "on the right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "centre": ("in the centre", "in the center", "in the middle"),
}


def some_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Random training scenes; all are equally likely."""
    return [TRAINING_SCENES[number] for number in rng.integers(len(TRAINING_SCENES), size=count)]


def full_prompt(scene: Scene) -> str:
    """A prompt that tells all facts of the scene, in the most common words."""
    position = POSITION_WORDS[scene.position][0]
    return f"a {scene.size} {scene.colour} {scene.shape} {position} on a {scene.background} background"


def some_prompt(scene: Scene, rng: np.random.Generator) -> tuple[str, set[str]]:
    """A random prompt for the scene, and the names of the facts that it tells; one prompt in ten is empty."""
    if rng.random() < EMPTY_PROMPTS:
        return "", set()
    told = {"shape", *(name for name, share in TOLD.items() if rng.random() < share)}
    size = str(rng.choice(SIZE_WORDS[scene.size])) if "size" in told else ""
    colour = scene.colour if "colour" in told else ""
    position = str(rng.choice(POSITION_WORDS[scene.position])) if "position" in told else ""
    ground = _ground(scene.background, rng) if "background" in told else ""
    article = str(rng.choice(("a", "a", "a", "the", "")))
    tail = [ground, position] if rng.random() < 0.2 else [position, ground]
    comma = "," if rng.random() < 0.15 else ""
    head = " ".join(word for word in (article, size, colour, scene.shape) if word)
    return f"{comma} ".join([head, *(part for part in tail if part)]), told


def _ground(background: str, rng: np.random.Generator) -> str:
    return str(rng.choice((f"on a {background} background", f"on {background}", f"{background} background")))


def all_words() -> list[str]:
    """All words of the prompts, sorted; the tokenizer knows them."""
    positions = [word for phrases in POSITION_WORDS.values() for phrase in phrases for word in phrase.split()]
    sizes = [word for words in SIZE_WORDS.values() for word in words]
    return sorted({*COLOURS, *SHAPES, *sizes, *positions, "a", "on", "background"})


def draw(scenes: Sequence[Scene], rng: np.random.Generator, jitter: float = JITTER) -> tuple[Array, Array]:
    """Images of the scenes as (N, 64, 64, 3) bytes, and their depths as (N, 64, 64) in [0, 1].

    Position and size of each shape vary a little at random.
    """
    centres = np.array([POSITIONS[scene.position] for scene in scenes], dtype=np.float32)
    centres += rng.uniform(-jitter, jitter, centres.shape).astype(np.float32)
    bounds = np.array([RADII[scene.size] for scene in scenes])
    radii = rng.uniform(bounds[:, 0], bounds[:, 1]).astype(np.float32)
    shapes = np.array([SHAPES.index(scene.shape) for scene in scenes])
    inside = coverage(shapes, centres, radii)
    colours = np.array([COLOURS[scene.colour] for scene in scenes], dtype=np.float32)[:, None, None]
    grounds = np.array([COLOURS[scene.background] for scene in scenes], dtype=np.float32)[:, None, None]
    images = grounds + (colours - grounds) * inside[..., None]
    return np.rint(images).astype(np.uint8), inside * nearness(radii)[:, None, None]


def outlines(depths: Array) -> Array:
    """The outlines of the shapes with these depths, (N, 64, 64): white lines on black, as bytes."""
    padded = np.pad(depths, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    differences = around.max((3, 4)) - around.min((3, 4))
    return np.where(differences > depths.max((1, 2), keepdims=True) / 2, 255, 0).astype(np.uint8)


def nearness(radii: Array) -> Array:
    """How near a shape is, in (0, 1): a larger shape is nearer. The background has 0."""
    return radii / 16


def coverage(shapes: Array, centres: Array, radii: Array) -> Array:
    """How much of each pixel lies inside the shape: (N, 64, 64) in [0, 1], with smooth edges.

    `shapes` are indices into SHAPES. `centres` (x, y) and `radii` are in pixels.
    """
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    x = axis[None, None, :] - centres[:, 0, None, None]
    y = axis[None, :, None] - centres[:, 1, None, None]
    outside = np.empty((len(shapes), SIZE, SIZE), dtype=np.float32)
    for number, name in enumerate(SHAPES):
        chosen = shapes == number
        if chosen.any():
            outside[chosen] = OUTLINES[name](x[chosen], y[chosen], radii[chosen, None, None])
    return np.clip(0.5 - outside, 0, 1)


def _circle(x: Array, y: Array, radius: Array) -> Array:
    return np.hypot(x, y) - radius


def _square(x: Array, y: Array, radius: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius


def _triangle(x: Array, y: Array, radius: Array) -> Array:
    """An equilateral triangle that stands on a side."""
    inner = 0.62 * radius
    return np.maximum(y, 0.866 * np.abs(x) - 0.5 * y) - inner


def _star(x: Array, y: Array, radius: Array) -> Array:
    """A star with five points, one of them up.

    In each fifth of the circle, the outline is the line from a point to the notch beside it.
    """
    fifth = 2 * np.pi / 5
    angle = np.arctan2(x, -y)
    off_point = np.abs((angle + fifth / 2) % fifth - fifth / 2)
    distance = np.hypot(x, y)
    along, across = distance * np.cos(off_point), distance * np.sin(off_point)
    tip, notch = 1.15 * radius, 0.5 * radius
    notch_x, notch_y = notch * np.cos(fifth / 2), notch * np.sin(fifth / 2)
    length = np.hypot(tip - notch_x, notch_y)
    return ((along - tip) * notch_y + across * (tip - notch_x)) / length


def _cross(x: Array, y: Array, radius: Array) -> Array:
    """An upright cross with arms of equal length."""
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - radius, short - 0.33 * radius)


def _ring(x: Array, y: Array, radius: Array) -> Array:
    middle = 0.78 * radius
    return np.abs(np.hypot(x, y) - middle) - 0.25 * radius


OUTLINES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
"""The function for each shape that gives the distance of a point from its outline, in pixels.

The distance is negative inside the shape.
"""
