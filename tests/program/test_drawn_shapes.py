"""What is in the images: each row shows what its own prompt says, whatever way it took.

The model that comes with darkroom draws what it is told: here a big circle of one colour on another. A prompt
that met another row's noise, image, mask or place in the output would be seen.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from actors.engine.diffusers_engine import DiffusersEngine
from schemas.job import Shard
from schemas.spec.job_spec import JobSpec
from tests.support.in_process import Record, encoded, image_of, job_spec, make, model_cache, write_rows
from tests.support.running import output_rows
from tests.support.simulation.fake_ray import Actor
from tests.support.simulation.in_process_driver import InProcessDriver
from tools.shapes import world
from tools.shapes.judge import look
from tools.shapes.world import Scene

MODELS = {
    "shapes": {
        "checkpoint": "demo:shapes",
        "loras": {"night": "demo:night"},
        "controlnets": {"outline": "demo:outline"},
    }
}
DRAWS: Record = {"model": "shapes", "num_inference_steps": 20, "guidance_scale": 2.5}
ROUTES: Record = {
    "text2img": DRAWS,
    "img2img": DRAWS | {"strength": 0.9, "guidance_scale": 6.0},
    "inpaint": DRAWS | {"strength": 0.95, "guidance_scale": 6.0},
    "safe": DRAWS,
    "again": DRAWS | {"task": "img2img", "strength": 0.5},
    "chain": DRAWS | {"task": "text2img", "then": ["again"], "keep_steps": True},
}
SCHEDULERS = (
    None,
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)


def scenes(count: int, seed: int = 0) -> list[Scene]:
    """Big circles in the middle. No green ones: the model draws them too dark now and then."""
    pairs = [(colour, ground) for colour in world.COLOURS for ground in world.COLOURS if colour != ground]
    random.Random(seed).shuffle(pairs)
    return [
        Scene(shape="circle", colour=colour, background=ground, size="big", position="centre")
        for colour, ground in pairs
        if colour != "green"
    ][:count]


def told(scene: Scene, row_id: int, **values: Any) -> Record:
    """A row that asks for a scene."""
    return {
        "row_id": str(row_id),
        "task": "text2img",
        "prompt": world.full_prompt(scene),
        "seed": row_id,
        **values,
    }


def shown(row: Record, column: str = "image") -> tuple[str, str]:
    """The colours in the middle and along the edges of a row's image: the nearest that have a name."""
    picture = np.asarray(image_of({"image": row[column]}), float)
    edges = np.concatenate([picture[:3], picture[-3:]]).reshape(-1, 3)
    return nearest(picture[28:36, 28:36].reshape(-1, 3)), nearest(edges)


def nearest(colours: np.ndarray) -> str:
    middle = np.median(colours, axis=0)
    return min(world.COLOURS, key=lambda name: float(np.linalg.norm(middle - world.COLOURS[name])))


def asked(scenes: Sequence[Scene]) -> list[tuple[str, str]]:
    return [(scene.colour, scene.background) for scene in scenes]


def test_rows_of_many_kinds_in_shared_batches_show_what_each_was_asked_for(tmp_path: Path) -> None:
    """Steps, guidance and schedulers vary from row to row; shards end in the midst of a batch."""
    wanted = scenes(30)
    rows = [
        told(scene, i, num_inference_steps=18 + i % 7, guidance_scale=2 + i % 3, scheduler=SCHEDULERS[i % 5])
        for i, scene in enumerate(wanted)
    ]

    made = make(spec(tmp_path, rows, batching={"shard_rows": 13, "max_batch_rows": 8}))

    assert [row["prompt"] for row in made.rows] == [row["prompt"] for row in rows]
    assert [shown(row) for row in made.rows] == asked(wanted)


def test_images_and_masks_stay_with_their_rows(tmp_path: Path) -> None:
    """img2img gives a drawn shape another colour in its place; inpainting paints within the mask alone."""
    drawn = scenes(12, seed=1)
    pictures, _ = world.draw(drawn, np.random.default_rng(0))
    wanted = [replace(scene, colour=other_colour(scene)) for scene in drawn]
    rows = [
        told(
            scene,
            i,
            task=("img2img", "inpaint")[i % 2],
            image=png(picture),
            mask_image=png(MASK) if i % 2 else None,
        )
        for i, (scene, picture) in enumerate(zip(wanted, pictures, strict=True))
    ]

    made = make(spec(tmp_path, rows, batching={"shard_rows": 5, "max_batch_rows": 8}))

    assert [shown(row) for row in made.rows] == asked(wanted)
    for before, row in [*zip(pictures, made.rows, strict=True)][1::2]:
        changes = np.abs(np.asarray(image_of(row), float) - before).mean(axis=2)
        assert changes[MASK == 0].mean() < 8 < changes[MASK == 255].mean()


def test_each_row_has_the_night_of_its_own_weight(tmp_path: Path) -> None:
    """The LoRA blackens the background whatever the prompt says of it, and leaves the shape as it is.

    Half of its weight does not do what the whole does, and rows without it are as ever.
    """
    by_day = [each for each in scenes(40, seed=4) if "black" not in (each.colour, each.background)][:15]
    weights = [(0.0, 0.5, 1.0)[i % 3] for i in range(len(by_day))]
    rows = [
        told(scene, i, loras=json.dumps({"night": weight}))
        for i, (scene, weight) in enumerate(zip(by_day, weights, strict=True))
    ]

    made = make(spec(tmp_path, rows, batching={"shard_rows": 8, "max_batch_rows": 8}))

    pairs = [*zip(made.rows, by_day, strict=True)]
    assert [shown(row) for row in made.rows[::3]] == asked(by_day[::3])
    assert [shown(row) for row in made.rows[2::3]] == [(each.colour, "black") for each in by_day[2::3]]
    light = [float(np.mean([light_of(row) / day_of(scene) for row, scene in pairs[i::3]])) for i in range(3)]
    assert light[2] < 0.3, light
    assert min(light[:2]) > 0.6, light


def test_a_shape_stands_where_its_own_outline_says(tmp_path: Path) -> None:
    """Whatever the prompt tells of shape and position; it gives the colours.

    Such rows share batches with others that have no outline.
    """
    outlined = [
        Scene(shape=shape, colour="red", background="white", size="big", position=position)
        for shape, position in zip(OUTLINED, world.POSITIONS, strict=True)
    ]
    _, depths = world.draw(outlined, np.random.default_rng(5))
    prompts = scenes(len(outlined), seed=5)
    rows = [
        told(prompt, i, controlnet=("outline", "")[i % 2], control_image=png(world.outlines(depths)[i // 2]))
        for i, prompt in enumerate(each for each in prompts for _ in range(2))
    ]

    made = make(spec(tmp_path, rows, batching={"max_batch_rows": 8}))

    seen = [look(np.asarray(image_of(row))) for row in made.rows]
    assert [(each.shape, each.position) for each in seen[::2]] == [
        (each.shape, each.position) for each in outlined
    ]
    assert [each.shape for each in seen[1::2]] == [each.shape for each in prompts]
    assert [(each.colour, each.background) for each in seen[::2]] == asked(prompts)


def test_a_chain_goes_on_with_its_own_rows_image(tmp_path: Path) -> None:
    """What the first step has drawn is repainted by the second, under the same prompt."""
    wanted = scenes(8, seed=2)

    made = make(spec(tmp_path, [told(scene, i, task="chain") for i, scene in enumerate(wanted)]))

    assert [shown(row) for row in made.rows] == asked(wanted)
    assert [shown({"image": row["step_images"][0]}) for row in made.rows] == asked(wanted)


def test_a_job_that_was_broken_off_and_run_again_pairs_each_prompt_with_its_image(tmp_path: Path) -> None:
    """The first run generates two parts of five, the second one the others, with two workers."""
    wanted = scenes(20, seed=3)
    job = spec(tmp_path, [told(scene, i) for i, scene in enumerate(wanted)], batching={"shard_rows": 4})
    driver = InProcessDriver(job)
    driver.engine = lambda: DiffusersEngine(model_cache(job), job)
    driver.before = fail_from_the_third_on
    driver.run()
    driver.before = lambda actor, shard: None

    driver.run()

    assert "resuming: 2 of 5 parts already saved" in driver.printed
    assert [shown(row) for row in output_rows(tmp_path / "out")] == asked(wanted)


def fail_from_the_third_on(actor: Actor, shard: Shard) -> None:
    """Generate the shards 0 and 1 alone."""
    if shard.index > 1:
        raise RuntimeError("broken off")


OUTLINED = ("square", "star", "cross", "triangle", "ring")
"""Shapes with outlines, all big; the prompts tell of circles in the centre."""


def light_of(row: Record) -> float:
    """The mean level of an image's edges."""
    picture = np.asarray(image_of(row), float)
    return float(np.median(np.concatenate([picture[:3], picture[-3:]]), axis=(0, 1)).sum())


def day_of(scene: Scene) -> float:
    """That of the background that a scene has by day."""
    return float(sum(world.COLOURS[scene.background]))


MASK = np.zeros((64, 64), np.uint8)
MASK[12:52, 12:52] = 255


def png(picture: np.ndarray) -> Record:
    """An image as a row holds it."""
    return encoded(Image.fromarray(picture))


def other_colour(scene: Scene) -> str:
    """One that the scene does not have."""
    return next(name for name in reversed(world.COLOURS) if name not in (scene.colour, scene.background))


def spec(folder: Path, rows: Sequence[Record], **sections: Any) -> JobSpec:
    """A job over the model that draws shapes."""
    path = write_rows(folder / "in.parquet", rows)
    return job_spec(path, folder / "out", models=MODELS, routes=ROUTES, **sections)
