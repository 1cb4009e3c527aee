"""What a checkpoint is asked to draw, paint over and fill in, and how the judge marks it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from tools.shapes import family, world
from tools.shapes.judge import Seen, look
from tools.shapes.world import COLOURS, POSITIONS, SIZE, Array, Scene

FACTS = ("colour", "background", "shape", "size", "position")
BATCH = 50
MARGIN = 20
"""Half the side of an inpainting's mask, in pixels: room for the biggest shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One picture that a checkpoint made."""

    wanted: Scene
    picture: Array
    seen: Seen
    before: Array | None = None
    """What img2img and inpainting were given."""
    mask: Array | None = None
    """True where inpainting was to paint."""


def load(kind: type[DiffusionPipeline], model: Path, scheduler: str = "") -> DiffusionPipeline:
    """A checkpoint in float32, whatever it was saved in, perhaps with another scheduler."""
    return _ready(kind.from_pretrained(model, dtype=torch.float32), scheduler)


def _ready(pipeline: DiffusionPipeline, scheduler: str) -> DiffusionPipeline:
    if scheduler:
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def held_out(count: int, seed: int) -> list[Scene]:
    """Scenes that no training picture shows, none twice while there are enough."""
    order = np.random.default_rng(seed).permutation(len(world.HELD_OUT_SCENES))
    return [world.HELD_OUT_SCENES[order[number % len(order)]] for number in range(count)]


def text2img(model: Path, count: int, seed: int, scheduler: str = "", **values: Any) -> list[Answer]:
    """Held-out scenes, told in full."""
    scenes = held_out(count, seed)
    prompts = [world.full_prompt(scene) for scene in scenes]
    pictures = _run(load(StableDiffusionPipeline, model, scheduler), prompts, seed, values)
    return [_answer(scene, picture) for scene, picture in zip(scenes, pictures, strict=True)]


def img2img(model: Path, count: int, seed: int, scheduler: str = "", **values: Any) -> list[Answer]:
    """A drawn shape in another colour: the prompt says colour and shape alone, the rest shall stay."""
    scenes = held_out(count, seed)
    before = _drawn(scenes, seed)
    wanted = [_repainted(scene, np.random.default_rng((seed, n))) for n, scene in enumerate(scenes)]
    prompts = [f"a {scene.colour} {scene.shape}" for scene in wanted]
    pipeline = load(StableDiffusionImg2ImgPipeline, model, scheduler)
    pictures = _run(pipeline, prompts, seed, values, image=before)
    return [
        _answer(scene, picture, before=old)
        for scene, picture, old in zip(wanted, pictures, before, strict=True)
    ]


def inpaint(model: Path, count: int, seed: int, scheduler: str = "", **values: Any) -> list[Answer]:
    """A drawn shape replaced by another in another colour, inside a square mask around it."""
    scenes = held_out(count, seed)
    before = _drawn(scenes, seed)
    wanted = []
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng((seed, number))
        wanted.append(replace(_repainted(scene, rng), shape=str(rng.choice(world.SHAPES))))
    masks = np.stack([_square_around(scene) for scene in wanted])
    prompts = [world.full_prompt(scene) for scene in wanted]
    pipeline = load(StableDiffusionInpaintPipeline, model, scheduler)
    pictures = _run(pipeline, prompts, seed, values, image=before, mask_image=(masks * 255).astype(np.uint8))
    answers = zip(wanted, pictures, before, masks, strict=True)
    return [_answer(scene, picture, before=old, mask=mask) for scene, picture, old, mask in answers]


def depth2img(model: Path, count: int, seed: int, scheduler: str = "", **values: Any) -> list[Answer]:
    """A drawn shape in other colours: the prompt says neither size nor place, which the depth shows."""
    scenes = held_out(count, seed)
    before = _drawn(scenes, seed)
    wanted = [_recoloured(scene, np.random.default_rng((seed, n))) for n, scene in enumerate(scenes)]
    prompts = [f"a {scene.colour} {scene.shape} on a {scene.background} background" for scene in wanted]
    pipeline = _ready(family.load_depth2img(model.parent), scheduler)
    pictures = _run(pipeline, prompts, seed, values, image=before)
    return [
        _answer(scene, picture, before=old)
        for scene, picture, old in zip(wanted, pictures, before, strict=True)
    ]


TASKS = {"text2img": text2img, "img2img": img2img, "inpaint": inpaint, "depth2img": depth2img}


def _answer(wanted: Scene, picture: Array, **given: Array) -> Answer:
    return Answer(wanted=wanted, picture=picture, seen=look(picture), **given)


def _drawn(scenes: list[Scene], seed: int) -> Array:
    return world.draw(scenes, np.random.default_rng(seed))[0]


def _repainted(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with its shape in a colour that it has nowhere."""
    others = [name for name in COLOURS if name not in (scene.colour, scene.background)]
    return replace(scene, colour=str(rng.choice(others)))


def _recoloured(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with its shape and its background in colours that neither had."""
    others = [name for name in COLOURS if name not in (scene.colour, scene.background)]
    colour, background = rng.choice(others, size=2, replace=False)
    return replace(scene, colour=str(colour), background=str(background))


def _square_around(scene: Scene) -> Array:
    x, y = POSITIONS[scene.position]
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[max(y - MARGIN, 0) : y + MARGIN, max(x - MARGIN, 0) : x + MARGIN] = True
    return mask


def _run(
    pipeline: DiffusionPipeline, prompts: list[str], seed: int, values: dict[str, Any], **images: Array
) -> Iterator[Array]:
    """A picture for each prompt as (64, 64, 3) bytes; each has a noise of its own, whatever the batch."""
    for start in range(0, len(prompts), BATCH):
        rows = range(start, min(start + BATCH, len(prompts)))
        made = pipeline(
            prompt=[prompts[row] for row in rows],
            generator=[torch.Generator().manual_seed(seed * 1_000_000 + row) for row in rows],
            output_type="np",
            **{name: [Image.fromarray(given[row]) for row in rows] for name, given in images.items()},
            **values,
        ).images
        yield from np.rint(made * 255).astype(np.uint8)
