"""Workloads of rows, from all alike to all different, with the same total number of denoising steps."""

import io
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, Any]

SCHEDULERS = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DDPMScheduler",
)
"""Schedulers that need one UNet call per step."""
TASKS = ("text2img", "img2img", "inpaint")
PARAMETERS = ("num_inference_steps", "guidance_scale", "height", "width", "strength")
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""The type of an image in a Parquet file, as Hugging Face writes it."""


def equal(num_rows: int, side: int, mean_steps: int) -> list[Row]:
    """Rows that differ only in prompt and seed."""
    return [
        _row(i, side) | {"num_inference_steps": mean_steps, "guidance_scale": 5.0, "scheduler": SCHEDULERS[0]}
        for i in range(num_rows)
    ]


def combinations(num_rows: int, side: int, mean_steps: int) -> list[Row]:
    """Rows with sixteen sets of parameters: a sweep over steps, guidance and schedulers."""
    return [
        _row(i, side)
        | {
            "num_inference_steps": mean_steps + (-1 if i % 2 else 1) * mean_steps // 4,
            "guidance_scale": 3.0 if i // 2 % 2 else 7.0,
            "scheduler": SCHEDULERS[i // 4 % 4],
        }
        for i in range(num_rows)
    ]


def different(num_rows: int, side: int, mean_steps: int) -> list[Row]:
    """Rows that all differ: steps from 0.5 to 1.5 times the mean, guidance from 1 to 9, six schedulers."""
    rng = random.Random(0)
    spread = range(mean_steps // 2, mean_steps + mean_steps // 2 + 1)
    rows = [
        _row(i, side)
        | {
            "num_inference_steps": spread[i % len(spread)],
            "guidance_scale": round(1 + 8 * i / num_rows, 3),
            "scheduler": SCHEDULERS[i % len(SCHEDULERS)],
        }
        for i in range(num_rows)
    ]
    rng.shuffle(rows)
    return rows


def tasks(num_rows: int, side: int, mean_steps: int) -> list[Row]:
    """Rows that all differ, in three tasks."""
    rng = random.Random(1)
    rows = different(num_rows, side, mean_steps)
    for i, row in enumerate(rows):
        row["task"] = TASKS[i % len(TASKS)]
        if row["task"] != "text2img":
            # The input image sets their size.
            row |= {"image": _image(rng, side), "strength": round(rng.uniform(0.5, 1.0), 3)}
            row |= {"height": None, "width": None}
        if row["task"] == "inpaint":
            row["mask_image"] = _mask(side)
    return rows


def sizes(num_rows: int, side: int, mean_steps: int) -> list[Row]:
    """Rows that all differ; half of them are 1.5 times as wide."""
    rows = different(num_rows, side, mean_steps)
    return [row | {"width": side * (2 + i % 2) // 2} for i, row in enumerate(rows)]


def few_steps(num_rows: int, side: int, mean_steps: int) -> list[Row]:
    """Equal rows for a model that is distilled to a few steps: LCM's scheduler, and no guidance."""
    steps = {"num_inference_steps": mean_steps, "guidance_scale": 1.0, "scheduler": "LCMScheduler"}
    return [_row(i, side) | steps for i in range(num_rows)]


EQUAL, DIFFERENT = "equal rows", "every row different"
WORKLOADS: dict[str, Callable[[int, int, int], list[Row]]] = {
    EQUAL: equal,
    "16 combinations": combinations,
    DIFFERENT: different,
    "three tasks": tasks,
    "two sizes": sizes,
}
"""The function that creates each workload's rows.

Its arguments are the number of rows, the side of an image in pixels, and the mean number of steps.
"""


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Write the rows to a Parquet file, and return its path."""
    types = {"image": IMAGE_TYPE, "mask_image": IMAGE_TYPE, "strength": pa.float64()}
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    pq.write_table(pa.table(columns), path)
    return path


def groups(rows: Sequence[Row], max_rows: int) -> Iterator[list[Row]]:
    """Groups of rows that can share a diffusers call, which takes only one value of each parameter."""
    alike: dict[object, list[Row]] = {}
    for row in rows:
        alike.setdefault((row["task"], row["scheduler"], *map(row.get, PARAMETERS)), []).append(row)
    for group in alike.values():
        for start in range(0, len(group), max_rows):
            yield group[start : start + max_rows]


def _row(i: int, side: int) -> Row:
    return {
        "row_id": f"row-{i:05d}",
        "task": "text2img",
        "prompt": f"a photograph of fox number {i}",
        "seed": i,
        "height": side,
        "width": side,
        "image": None,
        "mask_image": None,
        "strength": None,
    }


def _image(rng: random.Random, side: int) -> Row:
    image = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    colour = tuple(rng.randrange(256) for _ in range(3))
    image.paste(colour, (side // 4, side // 4, side // 2, side // 2))
    return _encoded(image)


def _mask(side: int) -> Row:
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (side // 2, 0, side, side))
    return _encoded(mask)


def _encoded(image: Image.Image) -> Row:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}
