"""The world: one shape of one colour on a background of another, drawn from a scene, told by a prompt."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

SIZE = 64
"""Pixels a side."""
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
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
RADII = {"small": (8.0, 9.2), "big": (14.2, 15.8)}
"""From and to, in pixels."""
POSITIONS = {"left": (19, 32), "right": (45, 32), "top": (32, 19), "bottom": (32, 45), "centre": (32, 32)}
"""Where the shape's centre of gravity lies, from the left and from the top."""
JITTER = 1.5
"""Pixels that a shape may lie beside its position."""
HELD_OUT_OF = 5
"""One combination in so many is never drawn for training."""

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a picture shows."""

    shape: str
    colour: str
    background: str
    size: str
    position: str

    def is_held_out(self) -> bool:
        """Whether the checksum of the five words puts this combination aside for the judge."""
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
"""How often a training prompt tells each fact; the shape is always told."""
EMPTY_PROMPTS = 0.1
POSITION_WORDS = {
    "left": ("at the left", "on the left"),
    "right": ("at the right", "on the right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "centre": ("in the centre", "in the center", "in the middle"),
}


def some_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes to train on, each as likely as any other."""
    return [TRAINING_SCENES[number] for number in rng.integers(len(TRAINING_SCENES), size=count)]


def full_prompt(scene: Scene) -> str:
    """Everything about a scene, in the commonest words."""
    place = POSITION_WORDS[scene.position][0]
    return f"a {scene.size} {scene.colour} {scene.shape} {place} on a {scene.background} background"


def some_prompt(scene: Scene, rng: np.random.Generator) -> tuple[str, set[str]]:
    """A scene told in one of many ways, and which of its five facts are told. One prompt in ten is empty."""
    if rng.random() < EMPTY_PROMPTS:
        return "", set()
    told = {"shape", *(name for name, often in TOLD.items() if rng.random() < often)}
    size = str(rng.choice(SIZE_WORDS[scene.size])) if "size" in told else ""
    colour = scene.colour if "colour" in told else ""
    place = str(rng.choice(POSITION_WORDS[scene.position])) if "position" in told else ""
    ground = _ground(scene.background, rng) if "background" in told else ""
    article = str(rng.choice(("a", "a", "a", "the", "")))
    tail = [ground, place] if rng.random() < 0.2 else [place, ground]
    comma = "," if rng.random() < 0.15 else ""
    head = " ".join(word for word in (article, size, colour, scene.shape) if word)
    return f"{comma} ".join([head, *(part for part in tail if part)]), told


def _ground(background: str, rng: np.random.Generator) -> str:
    return str(rng.choice((f"on a {background} background", f"on {background}", f"{background} background")))


def all_words() -> list[str]:
    """Every word of the language, for the tokenizer."""
    places = [word for phrases in POSITION_WORDS.values() for phrase in phrases for word in phrase.split()]
    sizes = [word for words in SIZE_WORDS.values() for word in words]
    return sorted({*COLOURS, *SHAPES, *sizes, *places, "a", "on", "background"})


def draw(scenes: Sequence[Scene], rng: np.random.Generator) -> tuple[Array, Array]:
    """Pictures of the scenes as (N, 64, 64, 3) bytes, and their depths as (N, 64, 64) in [0, 1].

    Each shape lies a little beside its position and is a little larger or smaller than its size.
    """
    places = np.array([POSITIONS[scene.position] for scene in scenes], dtype=np.float32)
    places += rng.uniform(-JITTER, JITTER, places.shape).astype(np.float32)
    bounds = np.array([RADII[scene.size] for scene in scenes])
    radii = rng.uniform(bounds[:, 0], bounds[:, 1]).astype(np.float32)
    shapes = np.array([SHAPES.index(scene.shape) for scene in scenes])
    inside = coverage(shapes, places, radii)
    colours = np.array([COLOURS[scene.colour] for scene in scenes], dtype=np.float32)[:, None, None]
    grounds = np.array([COLOURS[scene.background] for scene in scenes], dtype=np.float32)[:, None, None]
    pictures = grounds + (colours - grounds) * inside[..., None]
    return np.rint(pictures).astype(np.uint8), inside * nearness(radii)[:, None, None]


def nearness(radii: Array) -> Array:
    """How near a shape is, in (0, 1): what looks larger is nearer. The background's is 0."""
    return radii / 16


def coverage(shapes: Array, places: Array, radii: Array) -> Array:
    """How much of each pixel lies inside the shape: (N, 64, 64) in [0, 1], with smooth edges.

    `shapes` are indices into SHAPES, `places` (x, y) and `radii` pixels.
    """
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    x = axis[None, None, :] - places[:, 0, None, None]
    y = axis[None, :, None] - places[:, 1, None, None]
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
    """Equilateral, standing on a side."""
    inner = 0.62 * radius
    return np.maximum(y, 0.866 * np.abs(x) - 0.5 * y) - inner


def _star(x: Array, y: Array, radius: Array) -> Array:
    """Five points, one up. In each fifth of the circle, the line from a point to the notch beside it."""
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
    """Upright, with arms of equal length."""
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
"""For each shape, the distance of a point outside its outline (inside it is negative), in pixels."""
