"""The jobs that the tests run on the pretended GPU, and whose traffic with the device docs/batching.md tells.

Each job has its rows twice, with two numbers of steps: what a row-step asks for is the difference of the two.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.parity.plain_diffusers import ROWS, depth_map, system_of
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.spec.job_spec import JobSpec
from schemas.systems.schedulers import SCHEDULERS
from tests.support.in_process import Record, drawn_image, job_spec, mask, write_rows

STEPS = (4, 6)
"""The numbers of steps for all schedulers: after four of them, each scheduler's memory is full."""
FEW_STEPS = (2, 3)
"""The numbers of steps for schedulers without a memory."""
CHECKED = "sd-safety"
"""The demo checkpoint with a safety checker."""

SIDE = 32
"""Width and height of the images in pixels: half of the checkpoints' own, for a quarter of the work."""
_IMAGES: Record = {
    "image": drawn_image((SIDE, SIDE)),
    "mask_image": mask((SIDE, SIDE)),
    "depth_map": depth_map((SIDE, SIDE)),
}

TASKS: Mapping[str, Record] = {
    "text2img": {},
    "img2img": {"image": _IMAGES["image"], "strength": 1.0},
    "inpaint": {"image": _IMAGES["image"], "mask_image": _IMAGES["mask_image"], "strength": 1.0},
}
"""The tasks that every scheduler runs, with the values that they need."""
_LONG = "a fox in the snow under a very old tree by the river " * 8
_WEIGHTED = "a (fox)1.5 in the snow-"


def spec_on_device(
    folder: Path, dtype: str, rows: Sequence[Record], routes: Record | None = None, **changes: object
) -> JobSpec:
    """A job of these rows in a new folder, with their demo checkpoints in this dtype as its models."""
    folder.mkdir(parents=True)
    path = write_rows(folder / "rows.parquet", rows, {"depth_map": IMAGE_TYPE})
    tasks = {row["task"]: {"model": row["model"]} for row in rows} | (routes or {})
    names = {row["model"] for row in rows} | {route["model"] for route in tasks.values()}
    models = {name: {"checkpoint": f"demo:{name}", "dtype": dtype} for name in sorted(names)}
    first = rows[0]["task"]
    return job_spec(path, folder / "out", models=models, routes=tasks, default_route=first, **changes)


def twice(row_id: str, row: Record, steps: Iterable[int] = STEPS) -> list[Record]:
    """The row once for each number of steps, as `row_id@steps`."""
    return [row | {"row_id": f"{row_id}@{number}", "num_inference_steps": number} for number in steps]


def scheduler_rows(steps: Iterable[int] = STEPS) -> list[Record]:
    """Rows of every scheduler and task, for a Stable Diffusion whose UNet has 4 channels."""
    return [
        each
        for scheduler in SCHEDULERS
        for task, values in TASKS.items()
        for each in twice(
            f"{scheduler} {task}", _text2img() | values | {"task": task, "scheduler": scheduler}, steps
        )
    ]


def system_rows(steps: Iterable[int] = FEW_STEPS) -> list[Record]:
    """Rows of every system, named by checkpoint and task; depth2img with and without a depth map."""
    systems: dict[str, Record] = {}
    for row in ROWS:
        given = " with depth_map" if row["task"] == "depth2img" and row.get("depth_map") else ""
        systems.setdefault(f"{row['model']} {row['task']}{given}", row)
    rows: list[Record] = []
    for name, own in systems.items():
        row = own | _small(own)
        # Without a memory, unlike the scheduler that most demo checkpoints are published with.
        scheduler = None if row["task"] == "latent_upscale" else "DDIMScheduler"
        # No step is left out.
        strength = {"strength": 1.0} if "strength" in row else {}
        rows += twice(name, row | {"scheduler": scheduler} | strength, steps)
    return rows


def _small(row: Record) -> Record:
    """The row's images and size as small as the system takes them."""
    if row["task"] == "latent_upscale":
        return {}
    system = system_of(row)
    sides = ("height", "width") if "height" in system.defaults and not system.resizes_image else ()
    return {name: image for name, image in _IMAGES.items() if row.get(name)} | dict.fromkeys(sides, SIDE)


def _text2img(model: str = "sd", prompt: str = "a fox") -> Record:
    texts = {"prompt": prompt, "negative_prompt": "grey"}
    return {"model": model, "task": "text2img", "seed": 7, "height": SIDE, "width": SIDE} | texts


FEATURES: Mapping[str, tuple[list[Record], Record]] = {
    "a prompt": (twice("sd", _text2img(), FEW_STEPS), {}),
    "a prompt of 3 windows": (twice("sd", _text2img(prompt=_LONG), FEW_STEPS), {"long_prompts": "chunk"}),
    "a weighted prompt": (twice("sd", _text2img(prompt=_WEIGHTED), FEW_STEPS), {"prompt_weights": "compel"}),
    "XL: a prompt": (twice("xl", _text2img("sdxl"), FEW_STEPS), {}),
    "XL: a prompt of 3 windows": (
        twice("xl", _text2img("sdxl", _LONG), FEW_STEPS),
        {"long_prompts": "chunk"},
    ),
    "XL: a weighted prompt": (
        twice("xl", _text2img("sdxl", _WEIGHTED), FEW_STEPS),
        {"prompt_weights": "compel"},
    ),
    "a safety checker": (twice("checked", _text2img(CHECKED), FEW_STEPS), {}),
    "a chain that passes latents on, with keep_steps": (
        twice("fine", _text2img("sdxl") | {"task": "fine"}, (5, 6)),
        {
            "routes": {
                "refine": {"task": "img2img", "model": "sdxl-refiner", "num_inference_steps": 5}
                | {"denoising_start": 0.6},
                "fine": {"task": "text2img", "model": "sdxl", "denoising_end": 0.6}
                | {"then": ["refine"], "keep_steps": True},
            }
        },
    ),
    "a chain that passes images on": (
        twice("again", _text2img() | {"task": "again"}, FEW_STEPS),
        {
            "routes": {
                "again": {"task": "text2img", "model": "sd", "then": ["smaller"]},
                "smaller": {"task": "img2img", "model": "sd", "num_inference_steps": 2, "strength": 1.0},
            }
        },
    ),
}
"""Rows of each feature, and what its job's spec says beside models."""
