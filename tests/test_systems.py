"""Every system's row is what a plain diffusers call with the row's seed makes."""

import io
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from actors.clip_skip import enable_clip_skip
from actors.ldm3d import LDM3DImageProcessor
from actors.pipelines import OWN_PIPELINES
from schemas.systems import SYSTEMS, find_system
from tests.checkpoints import demo
from tests.in_process import Made, Record, encoded, job_spec, make, mask, picture, pixels, write_rows

LEVELS = 2
"""Of 255: a row's company in a batch may move it this far, no further."""
DEPTH_LEVELS = 65536 // 4096

# Loaded as published checkpoints have to be under diffusers 0.42.1.
LOADED_WITH: dict[str, dict[str, Any]] = {"safe": {"safety_checker": None}}
ARGUMENTS = (
    "negative_prompt",
    "prompt_2",
    "negative_prompt_2",
    "num_inference_steps",
    "guidance_scale",
    "strength",
    "height",
    "width",
    "eta",
    "clip_skip",
    "noise_level",
    "padding_mask_crop",
    "original_size",
    "crops_coords_top_left",
    "target_size",
    "aesthetic_score",
    "sld_guidance_scale",
    "sld_warmup_steps",
    "sld_threshold",
)


def depth_map(size: tuple[int, int] = (64, 64)) -> Record:
    """A 16-bit ramp."""
    ramp = np.linspace(0, 65535, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint16)
    return encoded(Image.fromarray(ramp))


def row(name: str, kind: str, task: str, **values: Any) -> Record:
    return {"row_id": name, "model": kind, "task": task, "prompt": "a fox", "seed": 7} | values


PICTURE, MASK, DEPTH = picture(), mask(), depth_map()
MASKED = {"image": PICTURE, "mask_image": MASK}

ROWS: list[Record] = [
    row("sd", "sd", "text2img"),
    row("sd-img", "sd", "img2img", image=PICTURE, strength=0.6),
    row("sd-in", "sd", "inpaint", **MASKED),
    row("sd-crop", "sd", "inpaint", **MASKED, padding_mask_crop=4),
    row("sd-safe", "sd", "safe", sld_warmup_steps=1),
    row("sd2", "sd2", "text2img"),
    row("sd2-img", "sd2", "img2img", image=PICTURE, strength=0.6),
    row("nine", "sd-inpaint", "inpaint", **MASKED),
    row("safe", "safe", "text2img", sld_warmup_steps=0, sld_guidance_scale=500.0),
    row("safe-other", "safe", "text2img", sld_warmup_steps=0, sld_threshold=1.0),
    row("depth", "depth2img", "depth2img", image=PICTURE, strength=0.7),
    row("depth-given", "depth2img", "depth2img", image=PICTURE, strength=0.7, depth_map=DEPTH),
    row("varied", "variation", "variation", image=PICTURE, prompt=None),
    row("up", "upscale", "upscale", image=picture((32, 32)), noise_level=30),
    row("latent-up", "latent-upscale", "latent_upscale", image=PICTURE),
    row("ldm3d", "ldm3d", "ldm3d"),
    row("ldm3d-4c", "ldm3d-4c", "ldm3d", guidance_scale=3.0),
    row("ldm3d-wide", "ldm3d", "ldm3d", height=64, width=128),
    row("ldm3d-up", "ldm3d-upscale", "ldm3d_upscale", image=PICTURE, depth_map=DEPTH, height=128, width=128),
    row("xl", "sdxl", "text2img", prompt_2="a painting", negative_prompt="grey", negative_prompt_2="dull"),
    row("xl-sizes", "sdxl", "text2img", original_size=[512, 512], crops_coords_top_left=[0, 64]),
    row("xl-img", "sdxl", "img2img", image=PICTURE, strength=0.6, target_size=[32, 32]),
    row("xl-in", "sdxl", "inpaint", **MASKED),
    row("xl-nine", "sdxl-inpaint", "inpaint", **MASKED),
    row("refined", "sdxl-refiner", "img2img", image=PICTURE, strength=0.6, aesthetic_score=3.0),
]
KINDS = list(dict.fromkeys(each["model"] for each in ROWS))
TASKS = list(dict.fromkeys(each["task"] for each in ROWS))
TYPES = {"original_size": None, "prompt": None}


def family(kind: str) -> str:
    return {"sd2": "sd", "ldm3d-4c": "ldm3d"}.get(kind, kind)


def reference(values: Record) -> tuple[np.ndarray, np.ndarray | None]:
    """The row's picture and depth by a plain call of its pipeline, alone."""
    system = find_system(family(values["model"]), values["task"])
    assert system is not None
    cls = OWN_PIPELINES.get(system.pipeline) or getattr(diffusers, system.pipeline)
    pipeline = cls.from_pretrained(
        demo(values["model"]), use_safetensors=True, **LOADED_WITH.get(values["model"], {})
    )
    pipeline.set_progress_bar_config(disable=True)
    enable_clip_skip(getattr(pipeline, "text_encoder", None))
    given: dict[str, Any] = {"num_inference_steps": 4} | {
        name: tuple(given) if isinstance(given := values[name], list) else given
        for name in ARGUMENTS
        if values.get(name) is not None
    }
    for field in ("image", "mask_image"):
        if values.get(field):
            given[field] = pixels({"image": values[field]})
    depth = Image.open(io.BytesIO(values["depth_map"]["bytes"])) if values.get("depth_map") else None
    if values["task"] == "ldm3d":
        pipeline.image_processor = LDM3DImageProcessor()
    if values["task"] == "depth2img" and depth:
        given["depth_map"] = torch.from_numpy(np.asarray(depth).astype(np.float32))[None]
    if values["task"] == "ldm3d_upscale":
        given |= {"rgb": given.pop("image"), "depth": depth}
        given["target_res"] = (given.pop("height"), given.pop("width"))
    if values["prompt"] is not None:
        given["prompt"] = values["prompt"]
    made = pipeline(generator=torch.Generator("cpu").manual_seed(7), output_type="pil", **given)
    rgb = made.rgb if hasattr(made, "rgb") else made.images
    found = getattr(made, "depth", None)
    return np.asarray(rgb[0], dtype=np.int32), None if found is None else np.asarray(found[0], dtype=np.int32)


@pytest.fixture(scope="module")
def references() -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Every row by plain diffusers."""
    return {each["row_id"]: reference(each) for each in ROWS}


@pytest.fixture(scope="module", params=[3, 256], ids=lambda rows: f"{rows}-row-shards")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All rows mixed in one job."""
    folder = tmp_path_factory.mktemp("systems")
    spec = job_spec(
        write_rows(folder / "rows.parquet", ROWS),
        folder / "out",
        models={kind: {"checkpoint": f"demo:{kind}"} for kind in KINDS},
        routes={
            task: {
                "model": next(each["model"] for each in ROWS if each["task"] == task),
                "num_inference_steps": 4,
            }
            for task in TASKS
        },
        batching={"shard_rows": request.param},
    )
    return make(spec)


@pytest.mark.parametrize("row_id", [each["row_id"] for each in ROWS])
def test_a_row_of_any_system_is_what_plain_diffusers_gives(
    made: Made, references: dict[str, tuple[np.ndarray, np.ndarray | None]], row_id: str
) -> None:
    """Mixed in one job with all others: pictures within two levels, depth within 1/4096 of its range."""
    ours = made.row(row_id)

    assert ours["status"] == "ok", ours["error_message"]
    picture, depth = references[row_id]
    assert np.abs(np.asarray(pixels(ours), dtype=np.int32) - picture).max() <= LEVELS
    if depth is None:
        assert ours["depth"] is None
    else:
        stored = Image.open(io.BytesIO(ours["depth"]["bytes"]))
        assert stored.mode == "I;16"
        assert np.abs(np.asarray(stored, dtype=np.int32) - depth).max() <= DEPTH_LEVELS


def test_each_system_of_the_table_is_tried() -> None:
    """A system that nobody tries is a system that nobody has."""
    tried = {(family(each["model"]), each["task"]) for each in ROWS}

    assert {(system.family, system.task) for system in SYSTEMS} - tried <= {("safe", "safe")}


def test_a_depth_map_without_depth_fails_alone(tmp_path: Path) -> None:
    """diffusers would scale it by its range, which is zero, and give NaN."""
    flat = encoded(Image.fromarray(np.full((64, 64), 500, np.uint16)))
    rows = [
        row("flat", "depth2img", "depth2img", image=PICTURE, depth_map=flat),
        row("ramp", "depth2img", "depth2img", image=PICTURE, depth_map=DEPTH),
    ]
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", rows),
        tmp_path / "out",
        models={"depth2img": {"checkpoint": "demo:depth2img"}},
        routes={"depth2img": {"model": "depth2img", "num_inference_steps": 2}},
        default_route="depth2img",
    )

    made = make(spec)

    assert [each["error_code"] or each["status"] for each in made.rows] == ["constant_depth", "ok"]
