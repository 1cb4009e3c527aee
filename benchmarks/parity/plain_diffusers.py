"""Rows of every system, and the image that plain diffusers generates for each in a separate call."""

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
from benchmarks.parity.drawn_images import Record, drawn_image, encoded, image_of, mask
from models.demo_cache import build_missing, demo_folder
from schemas.systems.system_table import System, find_system

Values = npt.NDArray[np.int32]

LEVELS = 2
"""How far the other rows of a batch may move a value of an image, in levels of 255."""
DEPTH_LEVELS = 65536 // 4096
"""How far they may move a value of a depth map, in levels of 65535."""

# Arguments that published checkpoints of a kind need under diffusers 0.42.1.
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
"""An image's values, and those of its depth map if it has one."""


def row(name: str, kind: str, task: str, **values: Any) -> Record:
    return {"row_id": name, "model": kind, "task": task, "prompt": "a fox", "seed": 7} | values


def _varied(base: Record, number: int, variation: Record) -> Record:
    varied = base | variation | {"row_id": f"{base['row_id']}-{number}", "seed": 100 * number + 1}
    if base.get("strength"):
        varied["strength"] = 0.5 + 0.2 * number
    if base["prompt"] is not None:
        varied["prompt"] = f"{number + 2} foxes by night"
    if base["task"] == "latent_upscale":
        # Only Euler's scheduler knows the prediction type of its checkpoint.
        varied["scheduler"] = None
    return varied


def depth_map(size: tuple[int, int] = (64, 64)) -> Record:
    """A depth map as an HF image struct: a 16-bit ramp."""
    ramp = np.linspace(0, 65535, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint16)
    return encoded(Image.fromarray(ramp))


IMAGE, MASK, DEPTH = drawn_image(), mask(), depth_map()
AWAY_FROM = {"negative_original_size": [512, 512], "negative_target_size": [32, 32]}
MASKED = {"image": IMAGE, "mask_image": MASK}

ROWS: list[Record] = [
    row("sd", "sd", "text2img"),
    row("sd-img", "sd", "img2img", image=IMAGE, strength=0.6),
    row("sd-in", "sd", "inpaint", **MASKED),
    row("sd-crop", "sd", "inpaint", **MASKED, padding_mask_crop=4),
    row("sd-resized", "sd", "inpaint", **MASKED, height=96, width=48),
    row(
        "sd-two-sizes",
        "sd",
        "inpaint",
        image=drawn_image((40, 56)),
        mask_image=mask((24, 16)),
        height=64,
        width=80,
    ),
    row("sd-wide-crop", "sd", "inpaint", **MASKED, padding_mask_crop=4, height=48, width=96),
    row("sd-safe", "sd", "safe", sld_warmup_steps=1),
    row("sd2", "sd2", "text2img"),
    row("sd2-img", "sd2", "img2img", image=IMAGE, strength=0.6),
    row("nine", "sd-inpaint", "inpaint", **MASKED),
    # A large scale multiplies rounding too, which differs between kinds of processors.
    row("safe", "safe", "text2img", sld_warmup_steps=0, sld_guidance_scale=50.0),
    row("safe-other", "safe", "text2img", sld_warmup_steps=0, sld_threshold=1.0),
    row("depth", "depth2img", "depth2img", image=IMAGE, strength=0.7),
    row("depth-given", "depth2img", "depth2img", image=IMAGE, strength=0.7, depth_map=DEPTH),
    row("varied", "variation", "variation", image=IMAGE, prompt=None),
    row("up", "upscale", "upscale", image=drawn_image((32, 32)), noise_level=30),
    row("latent-up", "latent-upscale", "latent_upscale", image=IMAGE),
    row("ldm3d", "ldm3d", "ldm3d"),
    row("ldm3d-4c", "ldm3d-4c", "ldm3d", guidance_scale=3.0),
    row("ldm3d-wide", "ldm3d", "ldm3d", height=64, width=128),
    row("ldm3d-up", "ldm3d-upscale", "ldm3d_upscale", image=IMAGE, depth_map=DEPTH, height=128, width=64),
    row("xl", "sdxl", "text2img", prompt_2="a painting", negative_prompt="grey", negative_prompt_2="dull"),
    row("xl-sizes", "sdxl", "text2img", original_size=[512, 512], crops_coords_top_left=[0, 64]),
    # Three rows that could share a call.
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
    row("xl-img-away", "sdxl", "img2img", image=IMAGE, strength=0.6, **AWAY_FROM),
    row("xl-img", "sdxl", "img2img", image=IMAGE, strength=0.6, target_size=[32, 32]),
    row("xl-in", "sdxl", "inpaint", **MASKED),
    row("xl-resized", "sdxl", "inpaint", **MASKED, height=48, width=96),
    row("xl-nine-resized", "sdxl-inpaint", "inpaint", **MASKED, height=96, width=64, padding_mask_crop=0),
    row("nine-resized", "sd-inpaint", "inpaint", **MASKED, height=48, width=72),
    row("xl-nine", "sdxl-inpaint", "inpaint", **MASKED),
    row("refined", "sdxl-refiner", "img2img", image=IMAGE, strength=0.6, aesthetic_score=3.0),
    row("refined-second", "sdxl-refiner", "img2img", image=IMAGE, strength=0.6, negative_prompt_2="dull"),
]
_VARIATIONS: list[Record] = [
    {"num_inference_steps": 3, "guidance_scale": 1.0, "scheduler": "EulerAncestralDiscreteScheduler"},
    {"num_inference_steps": 5, "guidance_scale": 9.0, "scheduler": "DPMSolverMultistepScheduler"},
    {"num_inference_steps": 2, "guidance_scale": 2.5, "scheduler": "DDIMScheduler", "eta": 0.5},
]
VARIED: list[Record] = [
    _varied(base, number, variation) for base in ROWS for number, variation in enumerate(_VARIATIONS)
]
"""Rows of every system. Those from one row of ROWS differ in steps and guidance and share no plain call."""

KINDS = list(dict.fromkeys(each["model"] for each in ROWS))
TASKS = list(dict.fromkeys(each["task"] for each in ROWS))

MODELS: Record = {kind: {"checkpoint": f"demo:{kind}"} for kind in KINDS}
ROUTES: Record = {
    task: {"model": next(each["model"] for each in ROWS if each["task"] == task), "num_inference_steps": 4}
    for task in TASKS
}


def system_of(values: Record) -> System:
    """The system that generates the row."""
    family = {"sd2": "sd", "ldm3d-4c": "ldm3d"}.get(values["model"], values["model"])
    system = find_system(family, values["task"])
    assert system is not None
    return system


@cache
def expected(row_id: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Expected:
    """What plain diffusers generates for a row of ROWS or VARIED; each row is generated once per process."""
    values = next(each for each in (*ROWS, *VARIED) if each["row_id"] == row_id)
    return reference(values, device, dtype)


def reference(values: Record, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Expected:
    """The row's image and depth map from a plain call of its pipeline with this row alone."""
    pipeline, published = _pipeline(values["model"], system_of(values).pipeline, device, dtype)
    cls = getattr(diffusers, values["scheduler"]) if values.get("scheduler") else type(published)
    pipeline.scheduler = cls.from_config(published.config)
    generator = torch.Generator("cpu").manual_seed(values["seed"])
    output = pipeline(generator=generator, output_type="pil", **_arguments(values))
    rgb = output.rgb if hasattr(output, "rgb") else output.images
    depth = getattr(output, "depth", None)
    return np.asarray(rgb[0], dtype=np.int32), None if depth is None else np.asarray(depth[0], dtype=np.int32)


@cache
def _pipeline(kind: str, name: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The pipeline of a kind of checkpoint, and the scheduler that it is published with."""
    cls = pipeline_class(name)
    build_missing(KINDS)  # All of them in one process, whose imports take longest.
    pipeline = cls.from_pretrained(
        demo_folder(kind), use_safetensors=True, dtype=dtype, **LOADED_WITH.get(kind, {})
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    enable_clip_skip(getattr(pipeline, "text_encoder", None))
    if name == "StableDiffusionLDM3DPipeline":
        pipeline.image_processor = LDM3DImageProcessor()
    return pipeline, pipeline.scheduler


def _arguments(values: Record) -> dict[str, Any]:
    system = system_of(values)
    arguments: dict[str, Any] = {"num_inference_steps": 4} | {
        name: tuple(value) if isinstance(value := values[name], list) else value
        for name in ARGUMENTS
        if values.get(name) is not None and name in (*system.texts, *system.defaults)
    }
    for field in ("image", "mask_image"):
        if values.get(field):
            arguments[field] = image_of({"image": values[field]})
    depth = Image.open(io.BytesIO(values["depth_map"]["bytes"])) if values.get("depth_map") else None
    if values["task"] == "depth2img" and depth:
        arguments["depth_map"] = torch.from_numpy(np.asarray(depth).astype(np.float32))[None]
    if values["task"] == "ldm3d_upscale":
        arguments |= {"rgb": arguments.pop("image"), "depth": depth}
        arguments["target_res"] = (arguments.pop("height"), arguments.pop("width"))
    return arguments


def stored_values(output: Record) -> Expected:
    """The values of an output row's image and of its depth map."""
    assert output["status"] == "ok", output["error_message"]
    rgb = np.asarray(image_of(output), dtype=np.int32)
    if output.get("depth") is None:
        return rgb, None
    depth = Image.open(io.BytesIO(output["depth"]["bytes"]))
    assert depth.mode == "I;16"
    return rgb, np.asarray(depth, dtype=np.int32)


def distances(output: Record, plain: Expected) -> tuple[int, int]:
    """The largest differences of an output row's image and depth map from the expected ones, in levels."""
    (image, depth), (plain_image, plain_depth) = stored_values(output), plain
    assert image.shape == plain_image.shape
    image_distance = int(np.abs(image - plain_image).max())
    if depth is None or plain_depth is None:
        assert depth is plain_depth
        return image_distance, 0
    assert depth.shape == plain_depth.shape
    return image_distance, int(np.abs(depth - plain_depth).max())
