"""Rows to make, from all alike to all different, with the same number of denoising steps in total."""

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
"""One UNet call a step, all of them."""
TASKS = ("text2img", "img2img", "inpaint")
PARAMETERS = ("num_inference_steps", "guidance_scale", "height", "width", "strength")
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Of a picture in a Parquet file, as Hugging Face writes it."""


def equal(num_rows: int, side: int, mean_steps: int) -> list[Row]:
    """Prompts and seeds apart, one set of parameters."""
    return [
        _row(i, side) | {"num_inference_steps": mean_steps, "guidance_scale": 5.0, "scheduler": SCHEDULERS[0]}
        for i in range(num_rows)
    ]


def combinations(num_rows: int, side: int, mean_steps: int) -> list[Row]:
    """Sixteen sets of parameters, as a sweep over steps, guidance and schedulers has."""
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
    """No two rows alike: steps from half to one and a half times the mean, guidance from 1 to 9."""
    draw = random.Random(0)
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
    draw.shuffle(rows)
    return rows


def tasks(num_rows: int, side: int, mean_steps: int) -> list[Row]:
    """No two rows alike, in three tasks."""
    draw = random.Random(1)
    rows = different(num_rows, side, mean_steps)
    for i, row in enumerate(rows):
        row["task"] = TASKS[i % len(TASKS)]
        if row["task"] != "text2img":
            # Their size is the picture's.
            row |= {"image": _picture(draw, side), "strength": round(draw.uniform(0.5, 1.0), 3)}
            row |= {"height": None, "width": None}
        if row["task"] == "inpaint":
            row["mask_image"] = _mask(side)
    return rows


def sizes(num_rows: int, side: int, mean_steps: int) -> list[Row]:
    """No two rows alike, half of them half as wide again."""
    rows = different(num_rows, side, mean_steps)
    return [row | {"width": side * (2 + i % 2) // 2} for i, row in enumerate(rows)]


EQUAL, DIFFERENT = "equal rows", "every row different"
WORKLOADS: dict[str, Callable[[int, int, int], list[Row]]] = {
    EQUAL: equal,
    "16 combinations": combinations,
    DIFFERENT: different,
    "three tasks": tasks,
    "two sizes": sizes,
}
"""From a number of rows, a picture's side in pixels, and the mean number of steps."""


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """The rows as a Parquet file."""
    types = {"image": IMAGE_TYPE, "mask_image": IMAGE_TYPE, "strength": pa.float64()}
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    pq.write_table(pa.table(columns), path)
    return path


def groups(rows: Sequence[Row], max_rows: int) -> Iterator[list[Row]]:
    """Rows that one diffusers call can make together: it takes one value of each parameter."""
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


def _picture(draw: random.Random, side: int) -> Row:
    image = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    colour = tuple(draw.randrange(256) for _ in range(3))
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
