"""Rows that are guided by a union of ControlNets: each is what plain diffusers makes of it."""

import io
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetUnionModel
from PIL import Image

from benchmarks.parity.drawn_images import drawn_image, mask
from benchmarks.parity.plain_diffusers import LEVELS
from demo.random_control_nets import save_control_net
from demo.random_loras import plain_pipeline
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.spec.job_spec import JobSpec
from schemas.systems.control_parameters import CONTROL_IMAGES
from tests.support.checkpoints import demo
from tests.support.in_process import Record, job_spec, make, write_rows

STEPS = 3
SUFFIXES = {"text2img": "", "img2img": "Img2Img", "inpaint": "Inpaint"}
INPUTS: dict[str, Record] = {
    "text2img": {},
    "img2img": {"image": drawn_image(), "strength": 0.8},
    "inpaint": {"image": drawn_image(), "mask_image": mask()},
}
ENTRIES: list[list[Record]] = [
    [{"control_mode": 1, "controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.5}],
    [{"control_mode": 0}, {"control_mode": 3, "controlnet_conditioning_scale": 0.5}],
    [{"control_mode": 2, "controlnet_conditioning_scale": 0.4}],
]
ROWS: list[Record] = [
    {
        "row_id": f"{task}-{number}",
        "task": task,
        "prompt": f"{number} foxes",
        "seed": number,
        "guidance_scale": 4.0,
        "controls": json.dumps([{"controlnet": "union", **entry} for entry in entries]),
        "control_image": drawn_image((64, 64)),
        "control_image_2": drawn_image((48, 96), "red"),
        **INPUTS[task],
    }
    for task in SUFFIXES
    for number, entries in enumerate(ENTRIES)
]


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("nets")
    return {
        "union": save_control_net(folder / "union", demo("sdxl"), seed=1, union=True),
        "canny": save_control_net(folder / "canny", demo("sdxl"), seed=2),
    }


@pytest.fixture(scope="module")
def expected(nets: dict[str, Path]) -> dict[str, np.ndarray]:
    """What plain diffusers makes of each row in a call of its own."""
    base = plain_pipeline(demo("sdxl"))
    net = ControlNetUnionModel.from_pretrained(nets["union"])

    def plain(row: Record, entries: list[Record]) -> np.ndarray:
        cls: Any = getattr(diffusers, f"StableDiffusionXLControlNetUnion{SUFFIXES[row['task']]}Pipeline")
        pipeline = cls(**base.components, controlnet=net)
        pipeline.set_progress_bar_config(disable=True)
        scale = 0.8 if row["task"] == "img2img" else 1.0
        arguments = {
            "control_image": [opened(row, field) for field in CONTROL_IMAGES[: len(entries)]],
            "control_mode": [entry["control_mode"] for entry in entries],
            "controlnet_conditioning_scale": [
                entry.get("controlnet_conditioning_scale", scale) for entry in entries
            ],
            "control_guidance_start": [0.0] * len(entries),
            "control_guidance_end": [entry.get("control_guidance_end", 1.0) for entry in entries],
            **{field: opened(row, field) for field in ("image", "mask_image") if field in row},
            **({"strength": row["strength"]} if "strength" in row else {}),
        }
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        output = pipeline(
            row["prompt"],
            guidance_scale=row["guidance_scale"],
            **arguments,
            height=64,
            width=64,
            num_inference_steps=STEPS,
            generator=generator,
            output_type="np",
        )
        return (output.images[0] * 255).round().astype(np.int32)

    return {row["row_id"]: plain(row, ENTRIES[number % len(ENTRIES)]) for number, row in enumerate(ROWS)}


def opened(row: Record, field: str) -> Image.Image:
    image = Image.open(io.BytesIO(row[field]["bytes"]))
    return image.convert("L" if field == "mask_image" else "RGB")


def spec_of(folder: Path, nets: dict[str, Path], rows: list[Record], **batching: Any) -> JobSpec:
    path = write_rows(folder / "rows.parquet", rows, dict.fromkeys(CONTROL_IMAGES[:2], IMAGE_TYPE))
    controlnets = {name: str(net) for name, net in nets.items()}
    return job_spec(
        path,
        folder / "out",
        models={"xl": {"checkpoint": "demo:sdxl", "controlnets": controlnets}},
        routes={task: {"model": "xl", "num_inference_steps": STEPS} for task in SUFFIXES},
        batching=batching,
        errors={"max_rate": 1.0},
    )


@pytest.mark.parametrize(("batching", "most"), [({}, LEVELS), ({"exact": True}, 0)])
def test_each_row_is_what_plain_diffusers_makes_of_it(
    nets: dict[str, Path],
    expected: dict[str, np.ndarray],
    tmp_path: Path,
    batching: dict[str, bool],
    most: int,
) -> None:
    made = make(spec_of(tmp_path, nets, ROWS, **batching))

    far = {
        name: int(np.abs(np.asarray(opened(made.row(name), "image"), np.int32) - values).max())
        for name, values in expected.items()
    }
    assert {name: levels for name, levels in far.items() if levels > most} == {}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"controlnet": "union"}, "control_mode must be a number from 0 to 5"),
        ({"controlnet": "union", "control_mode": 6}, "control_mode must be a number from 0 to 5"),
        ({"controlnet": "union", "control_mode": 1, "guess_mode": True}, "no guess_mode for a union"),
        (
            {"controls": '[{"controlnet":"union","control_mode":1},{"controlnet":"canny"}]'},
            "is a union, which guides without any other; name it alone",
        ),
        (
            {"controlnet": "canny", "control_mode": 1},
            "ControlNet `canny` is not a union, and only those have a control_mode; leave it out",
        ),
        ({"controls": '[{"controlnet":"canny","control_mode":1}]'}, "ControlNet `canny` is not a union"),
    ],
)
def test_a_row_that_a_union_cannot_guide_is_refused(
    nets: dict[str, Path], tmp_path: Path, row: Record, says: str
) -> None:
    """And one that is not a union has no mode."""
    common = {**ROWS[0], "controls": None, "controlnet": None, "control_mode": None, "guess_mode": None}
    rows = [common | {"row_id": "plain", "controlnet": "canny"}, common | row]

    _, findings = make_plan(make_survey(spec_of(tmp_path, nets, rows)))

    assert len(findings.bad_rows) == 1
    assert says in str(findings.bad_rows[0].problem)
