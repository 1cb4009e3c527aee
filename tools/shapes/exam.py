"""The exam in each task: a checkpoint generates images of scenes, and the judge says what they show."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
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
"""Half the side of an inpainting mask, in pixels: it has room for the biggest shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One image that a checkpoint generated, and what the judge sees in it."""

    scene: Scene
    """The scene that the image should show."""
    image: Array
    seen: Seen
    before: Array | None = None
    """The input image of img2img, inpaint and depth2img."""
    mask: Array | None = None
    """True for the pixels that inpaint should paint."""


def load(kind: type[DiffusionPipeline], model: Path, scheduler: str = "") -> DiffusionPipeline:
    """The pipeline of a checkpoint, always in float32; `scheduler` replaces its scheduler."""
    return _ready(kind.from_pretrained(model, dtype=torch.float32), scheduler)


def _ready(pipeline: DiffusionPipeline, scheduler: str) -> DiffusionPipeline:
    if scheduler:
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def held_out(count: int, seed: int) -> list[Scene]:
    """Scenes that no training image shows; they repeat only if `count` is more than there are."""
    order = np.random.default_rng(seed).permutation(len(world.HELD_OUT_SCENES))
    return [world.HELD_OUT_SCENES[order[number % len(order)]] for number in range(count)]


def text2img(model: Path, count: int, seed: int, scheduler: str = "", **values: Any) -> list[Answer]:
    """Answers about held-out scenes that the prompts describe in full."""
    scenes = held_out(count, seed)
    prompts = [world.full_prompt(scene) for scene in scenes]
    images = _run(load(StableDiffusionPipeline, model, scheduler), prompts, seed, values)
    return [_answer(scene, image) for scene, image in zip(scenes, images, strict=True)]


def img2img(model: Path, count: int, seed: int, scheduler: str = "", **values: Any) -> list[Answer]:
    """Answers about a drawn shape in another colour.

    The prompt tells only the colour and the shape; everything else should stay.
    """
    drawn_scenes = held_out(count, seed)
    before = _drawn(drawn_scenes, seed)
    scenes = [_repainted(scene, np.random.default_rng((seed, n))) for n, scene in enumerate(drawn_scenes)]
    prompts = [f"a {scene.colour} {scene.shape}" for scene in scenes]
    pipeline = load(StableDiffusionImg2ImgPipeline, model, scheduler)
    images = _run(pipeline, prompts, seed, values, image=before)
    answers = zip(scenes, images, before, strict=True)
    return [_answer(scene, image, before=old) for scene, image, old in answers]


def inpaint(model: Path, count: int, seed: int, scheduler: str = "", **values: Any) -> list[Answer]:
    """Answers about a drawn shape that another shape in another colour replaces, inside a square mask."""
    drawn_scenes = held_out(count, seed)
    before = _drawn(drawn_scenes, seed)
    scenes = []
    for number, scene in enumerate(drawn_scenes):
        rng = np.random.default_rng((seed, number))
        scenes.append(replace(_repainted(scene, rng), shape=str(rng.choice(world.SHAPES))))
    masks = np.stack([_square_around(scene) for scene in scenes])
    prompts = [world.full_prompt(scene) for scene in scenes]
    pipeline = load(StableDiffusionInpaintPipeline, model, scheduler)
    images = _run(pipeline, prompts, seed, values, image=before, mask_image=(masks * 255).astype(np.uint8))
    answers = zip(scenes, images, before, masks, strict=True)
    return [_answer(scene, image, before=old, mask=mask) for scene, image, old, mask in answers]


def depth2img(model: Path, count: int, seed: int, scheduler: str = "", **values: Any) -> list[Answer]:
    """Answers about a drawn shape in other colours.

    The prompt tells neither size nor position, which the depth shows.
    """
    drawn_scenes = held_out(count, seed)
    before = _drawn(drawn_scenes, seed)
    scenes = [_recoloured(scene, np.random.default_rng((seed, n))) for n, scene in enumerate(drawn_scenes)]
    prompts = [f"a {scene.colour} {scene.shape} on a {scene.background} background" for scene in scenes]
    pipeline = _ready(family.load_depth2img(model.parent), scheduler)
    images = _run(pipeline, prompts, seed, values, image=before)
    answers = zip(scenes, images, before, strict=True)
    return [_answer(scene, image, before=old) for scene, image, old in answers]


def night(model: Path, count: int, seed: int, scheduler: str = "", **values: Any) -> list[Answer]:
    """Answers about scenes that the prompts tell by day, with the LoRA that makes it night."""
    by_day = [scene for scene in held_out(2 * count, seed) if scene.colour != world.NIGHT][:count]
    pipeline = load(StableDiffusionPipeline, model, scheduler)
    pipeline.load_lora_weights(model.parent / family.NIGHT)
    images = _run(pipeline, [world.full_prompt(scene) for scene in by_day], seed, values)
    return [
        _answer(replace(scene, background=world.NIGHT), image)
        for scene, image in zip(by_day, images, strict=True)
    ]


def outline(model: Path, count: int, seed: int, scheduler: str = "", **values: Any) -> list[Answer]:
    """Answers about scenes whose outlines the ControlNet follows.

    The prompts tell their colours, and the shape, size and position of other scenes.
    """
    scenes, others = held_out(count, seed), held_out(count, seed + 1)
    outlines = world.outlines(world.draw(scenes, np.random.default_rng(seed))[1])
    prompts = [
        world.full_prompt(replace(other, colour=scene.colour, background=scene.background))
        for scene, other in zip(scenes, others, strict=True)
    ]
    net = ControlNetModel.from_pretrained(model.parent / family.OUTLINE, dtype=torch.float32)
    base = load(StableDiffusionPipeline, model, scheduler)
    pipeline = _ready(StableDiffusionControlNetPipeline(**base.components, controlnet=net), scheduler)
    images = _run(pipeline, prompts, seed, values, image=np.stack([outlines] * 3, axis=-1))
    return [_answer(scene, image) for scene, image in zip(scenes, images, strict=True)]


TASKS = {
    "text2img": text2img,
    "img2img": img2img,
    "inpaint": inpaint,
    "depth2img": depth2img,
    "night": night,
    "outline": outline,
}


def _answer(scene: Scene, image: Array, **inputs: Array) -> Answer:
    return Answer(scene=scene, image=image, seen=look(image), **inputs)


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
    """Yield an image for each prompt as (64, 64, 3) bytes; its noise does not depend on the batch."""
    for start in range(0, len(prompts), BATCH):
        rows = range(start, min(start + BATCH, len(prompts)))
        output = pipeline(
            prompt=[prompts[row] for row in rows],
            generator=[torch.Generator().manual_seed(seed * 1_000_000 + row) for row in rows],
            output_type="np",
            **{name: [Image.fromarray(inputs[row]) for row in rows] for name, inputs in images.items()},
            **values,
        ).images
        yield from np.rint(output * 255).astype(np.uint8)
