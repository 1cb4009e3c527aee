"""Rows of every system, and what plain diffusers makes of each: a call of its own on weights of its own."""

import io
from functools import cache
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from actors.engine.pipelines.pipeline_builder import pipeline_class
from actors.engine.quirks.clip_skip import enable_clip_skip
from actors.engine.quirks.ldm3d import LDM3DImageProcessor
from schemas.systems.system_table import System, find_system
from tests.support.checkpoints import demo
from tests.support.in_process import Record, encoded, mask, picture, pixels

Values = npt.NDArray[np.int32]

LEVELS = 2
"""Of 255: a row's company in a batch may move it this far, no further."""
DEPTH_LEVELS = 65536 // 4096

# Loaded as published checkpoints have to be under diffusers 0.42.1.
LOADED_WITH: dict[str, dict[str, Any]] = {"safe": {"safety_checker": None}}
ARGUMENTS = (
    "prompt",
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
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
    "aesthetic_score",
    "sld_guidance_scale",
    "sld_warmup_steps",
    "sld_threshold",
)


Expected = tuple[Values, Values | None]
"""A picture, and its depth where there is one."""


def row(name: str, kind: str, task: str, **values: Any) -> Record:
    return {"row_id": name, "model": kind, "task": task, "prompt": "a fox", "seed": 7} | values


def _varied(base: Record, place: int, variation: Record) -> Record:
    varied = base | variation | {"row_id": f"{base['row_id']}-{place}", "seed": 100 * place + 1}
    if base.get("strength"):
        varied["strength"] = 0.5 + 0.2 * place
    if base["prompt"] is not None:
        varied["prompt"] = f"{place + 2} foxes by night"
    if base["task"] == "latent_upscale":
        # Its checkpoint predicts in a way that Euler's scheduler alone knows.
        varied["scheduler"] = None
    return varied


def depth_map(size: tuple[int, int] = (64, 64)) -> Record:
    """A 16-bit ramp."""
    ramp = np.linspace(0, 65535, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint16)
    return encoded(Image.fromarray(ramp))


PICTURE, MASK, DEPTH = picture(), mask(), depth_map()
AWAY_FROM = {"negative_original_size": [512, 512], "negative_target_size": [32, 32]}
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
    # Three that could share a call.
    *(
        row(
            f"xl-away-{seed}",
            "sdxl",
            "text2img",
            seed=seed,
            **AWAY_FROM,
            negative_crops_coords_top_left=[8, 0],
        )
        for seed in range(3)
    ),
    row("xl-second", "sdxl", "text2img", negative_prompt_2="dull"),
    row("xl-img-away", "sdxl", "img2img", image=PICTURE, strength=0.6, **AWAY_FROM),
    row("xl-img", "sdxl", "img2img", image=PICTURE, strength=0.6, target_size=[32, 32]),
    row("xl-in", "sdxl", "inpaint", **MASKED),
    row("xl-nine", "sdxl-inpaint", "inpaint", **MASKED),
    row("refined", "sdxl-refiner", "img2img", image=PICTURE, strength=0.6, aesthetic_score=3.0),
    row("refined-second", "sdxl-refiner", "img2img", image=PICTURE, strength=0.6, negative_prompt_2="dull"),
]
_VARIATIONS: list[Record] = [
    {"num_inference_steps": 3, "guidance_scale": 1.0, "scheduler": "EulerAncestralDiscreteScheduler"},
    {"num_inference_steps": 5, "guidance_scale": 9.0, "scheduler": "DPMSolverMultistepScheduler"},
    {"num_inference_steps": 2, "guidance_scale": 2.5, "scheduler": "DDIMScheduler", "eta": 0.5},
]
VARIED: list[Record] = [
    _varied(base, place, variation) for base in ROWS for place, variation in enumerate(_VARIATIONS)
]
"""Rows of every system of which no two could share a plain call: each differs from all others of its task in
its steps, guidance and scheduler."""

KINDS = list(dict.fromkeys(each["model"] for each in ROWS))
TASKS = list(dict.fromkeys(each["task"] for each in ROWS))

MODELS: Record = {kind: {"checkpoint": f"demo:{kind}"} for kind in KINDS}
ROUTES: Record = {
    task: {"model": next(each["model"] for each in ROWS if each["task"] == task), "num_inference_steps": 4}
    for task in TASKS
}


def system_of(values: Record) -> System:
    """What makes the row."""
    family = {"sd2": "sd", "ldm3d-4c": "ldm3d"}.get(values["model"], values["model"])
    system = find_system(family, values["task"])
    assert system is not None
    return system


@cache
def expected(row_id: str) -> Expected:
    """What plain diffusers makes of a row of ROWS or VARIED: made once for all the tests of a process."""
    return reference(next(each for each in (*ROWS, *VARIED) if each["row_id"] == row_id))


def reference(values: Record) -> Expected:
    """The row's picture and depth by a plain call of its pipeline, alone."""
    pipeline, published = _pipeline(values["model"], system_of(values).pipeline)
    cls = getattr(diffusers, values["scheduler"]) if values.get("scheduler") else type(published)
    pipeline.scheduler = cls.from_config(published.config)
    generator = torch.Generator("cpu").manual_seed(values["seed"])
    made = pipeline(generator=generator, output_type="pil", **_arguments(values))
    rgb = made.rgb if hasattr(made, "rgb") else made.images
    depth = getattr(made, "depth", None)
    return np.asarray(rgb[0], dtype=np.int32), None if depth is None else np.asarray(depth[0], dtype=np.int32)


@cache
def _pipeline(kind: str, name: str) -> tuple[Any, Any]:
    """It, and the scheduler that it is published with."""
    cls = pipeline_class(name)
    pipeline = cls.from_pretrained(demo(kind), use_safetensors=True, **LOADED_WITH.get(kind, {}))
    pipeline.set_progress_bar_config(disable=True)
    enable_clip_skip(getattr(pipeline, "text_encoder", None))
    if name == "StableDiffusionLDM3DPipeline":
        pipeline.image_processor = LDM3DImageProcessor()
    return pipeline, pipeline.scheduler


def _arguments(values: Record) -> dict[str, Any]:
    system = system_of(values)
    given: dict[str, Any] = {"num_inference_steps": 4} | {
        name: tuple(given) if isinstance(given := values[name], list) else given
        for name in ARGUMENTS
        if values.get(name) is not None and name in (*system.texts, *system.defaults)
    }
    for field in ("image", "mask_image"):
        if values.get(field):
            given[field] = pixels({"image": values[field]})
    depth = Image.open(io.BytesIO(values["depth_map"]["bytes"])) if values.get("depth_map") else None
    if values["task"] == "depth2img" and depth:
        given["depth_map"] = torch.from_numpy(np.asarray(depth).astype(np.float32))[None]
    if values["task"] == "ldm3d_upscale":
        given |= {"rgb": given.pop("image"), "depth": depth}
        given["target_res"] = (given.pop("height"), given.pop("width"))
    return given


def stored(output: Record) -> Expected:
    """The picture and depth of an output row."""
    assert output["status"] == "ok", output["error_message"]
    rgb = np.asarray(pixels(output), dtype=np.int32)
    if output.get("depth") is None:
        return rgb, None
    depth = Image.open(io.BytesIO(output["depth"]["bytes"]))
    assert depth.mode == "I;16"
    return rgb, np.asarray(depth, dtype=np.int32)


def distances(output: Record, plain: Expected) -> tuple[int, int]:
    """How far an output row's picture and its depth are from these, at most, in levels."""
    (picture, depth), (plain_picture, plain_depth) = stored(output), plain
    assert picture.shape == plain_picture.shape
    far = int(np.abs(picture - plain_picture).max())
    if depth is None or plain_depth is None:
        assert depth is plain_depth
        return far, 0
    assert depth.shape == plain_depth.shape
    return far, int(np.abs(depth - plain_depth).max())
