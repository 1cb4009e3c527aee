"""bfloat16: XL's pipelines encode in float32 and decode in bfloat16, also with several calls under way."""

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from actors.engine.diffusers_engine import DiffusersEngine
from tests.support.checkpoints import demo
from tests.support.in_process import (
    Made,
    Record,
    drawn_image,
    image_of,
    job_spec,
    make,
    mask,
    model_cache,
    write_rows,
)

CLASSES = {
    "text2img": diffusers.StableDiffusionXLPipeline,
    "img2img": diffusers.StableDiffusionXLImg2ImgPipeline,
    "inpaint": diffusers.StableDiffusionXLInpaintPipeline,
}
IMAGE_COLUMNS = {
    "text2img": {},
    "img2img": {"image": drawn_image()},
    "inpaint": {"image": drawn_image(), "mask_image": mask()},
}
ROWS: list[Record] = [
    {"row_id": f"{task}-{steps}", "task": task, "prompt": "a fox", "seed": steps, **pictures}
    | {"num_inference_steps": steps, "strength": 0.9}
    for steps in (2, 3, 4)
    for task, pictures in IMAGE_COLUMNS.items()
]


def made_in_bfloat16(folder: Path, **batching: bool) -> tuple[Made, DiffusersEngine]:
    models = {"xl": {"checkpoint": "demo:sdxl", "dtype": "bfloat16"}}
    routes = {task: {"model": "xl"} for task in CLASSES}
    path = write_rows(folder / "rows.parquet", ROWS)
    spec = job_spec(path, folder / "out", models=models, routes=routes, batching=batching)
    engine = DiffusersEngine(model_cache(spec), spec)
    return make(spec, engine), engine


@cache
def pipeline_of(task: str) -> Any:
    """The task's plain pipeline in bfloat16."""
    pipeline = CLASSES[task].from_pretrained(demo("sdxl"), use_safetensors=True, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def reference(number: int) -> np.ndarray:
    """The image of this one of ROWS by a plain call in bfloat16."""
    row = ROWS[number]
    given = {name: image_of({"image": row[name]}) for name in IMAGE_COLUMNS[row["task"]]}
    if given:
        given["strength"] = row["strength"]
    generator = torch.Generator().manual_seed(row["seed"])
    steps = row["num_inference_steps"]
    pipeline = pipeline_of(row["task"])
    made = pipeline(row["prompt"], generator=generator, num_inference_steps=steps, **given).images[0]
    return np.asarray(made, dtype=np.int16)


def test_an_exact_image_in_bfloat16_is_that_of_plain_diffusers(tmp_path: Path) -> None:
    """Whose pipelines cast the VAE up and down again for each call."""
    made, _ = made_in_bfloat16(tmp_path, exact=True)

    for number, row in enumerate(ROWS):
        ours = np.asarray(image_of(made.row(row["row_id"])), dtype=np.int16)
        assert np.array_equal(ours, reference(number)), row["row_id"]


def test_calls_side_by_side_in_bfloat16_find_the_vae_as_it_should_be(tmp_path: Path) -> None:
    """Some encode while others decode; bfloat16 rounds by many levels."""
    made, engine = made_in_bfloat16(tmp_path)

    assert engine.counts["unet"].images > 2 * engine.counts["unet"].batches
    assert {row["row_id"]: row["error_message"] for row in made.rows if row["status"] != "ok"} == {}
    for number, row in enumerate(ROWS):
        ours = np.asarray(image_of(made.row(row["row_id"])), dtype=np.int16)
        assert np.abs(ours - reference(number)).mean() < 4
