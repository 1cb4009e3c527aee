"""Half precision: what would overflow is kept in float32, or divided."""

import io
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from actors.engine.calls.call_arguments import depth_values
from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.pipelines.loaded_model import LoadedModel
from actors.engine.pipelines.loading import LoadOptions
from benchmarks.parity.plain_diffusers import depth_map
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.spec.job_spec import JobSpec, ModelSpec
from tests.support.checkpoints import demo, sdxl_checkpoint
from tests.support.in_process import (
    DEVICE,
    Made,
    Record,
    drawn_image,
    encoded,
    image_of,
    job_spec,
    make,
    model_cache,
    write_rows,
)

HALF = {"checkpoint": "demo:sdxl", "dtype": "float16"}
ROWS: list[Record] = [
    {
        "row_id": f"r{i}",
        "task": "img2img" if i % 2 else "text2img",
        "prompt": f"a fox, number {i}",
        "seed": i,
        "image": drawn_image() if i % 2 else None,
        "num_inference_steps": 2 + i % 3,
        "strength": 1.0 if i % 2 else None,
    }
    for i in range(6)
]


def spec_for(folder: Path, model: Record = HALF, **batching: bool) -> JobSpec:
    routes = {task: {"model": "sd"} for task in ("text2img", "img2img")}
    rows = write_rows(folder / "rows.parquet", ROWS)
    return job_spec(rows, folder / "out", models={"sd": model}, routes=routes, batching=batching)


def reference(row: Record) -> np.ndarray:
    """The row's image by a plain call in float16."""
    tasks = {
        "text2img": diffusers.StableDiffusionXLPipeline,
        "img2img": diffusers.StableDiffusionXLImg2ImgPipeline,
    }
    pipeline = tasks[row["task"]].from_pretrained(
        sdxl_checkpoint(), use_safetensors=True, dtype=torch.float16
    )
    pipeline.set_progress_bar_config(disable=True)
    arguments = {} if row["image"] is None else {"image": image_of(row), "strength": row["strength"]}
    generator = torch.Generator().manual_seed(row["seed"])
    steps = row["num_inference_steps"]
    made = pipeline(row["prompt"], generator=generator, num_inference_steps=steps, **arguments).images[0]
    return np.asarray(made, dtype=np.int16)


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
def test_an_exact_image_in_float16_is_that_of_plain_diffusers(tmp_path: Path) -> None:
    """Whose pipelines cast the VAE up and down again for each call."""
    made = make(spec_for(tmp_path, exact=True))

    for row in ROWS[:2]:
        ours = np.asarray(image_of(made.row(row["row_id"])), dtype=np.int16)
        assert np.array_equal(ours, reference(row))


def test_calls_side_by_side_in_float16_find_the_vae_as_it_should_be(tmp_path: Path) -> None:
    """Text-to-image rows that decode while image-to-image rows encode; float16 rounds by a few levels."""
    spec = spec_for(tmp_path)
    engine = DiffusersEngine(model_cache(spec), spec)
    made = make(spec, engine)
    (tmp_path / "single").mkdir()
    single = make(spec_for(tmp_path / "single", {"checkpoint": "demo:sdxl", "dtype": "float32"}))

    assert engine.counts["unet"].images > 2 * engine.counts["unet"].batches
    assert {row["status"] for row in made.rows} == {"ok"}
    for row in ROWS:
        assert mean_difference(made, single, row["row_id"]) < 2


@pytest.mark.parametrize(
    ("kind", "force_upcast", "dtype"),
    [
        ("sdxl", True, torch.float32),
        ("sdxl", False, torch.float16),
        ("upscale", True, torch.float32),
        ("sd", True, torch.float16),
    ],
)
def test_a_vae_that_overflows_in_float16_is_not_in_float16(
    tmp_path: Path, kind: str, force_upcast: bool, dtype: torch.dtype
) -> None:
    """It asks for that by `force_upcast`, which Stable Diffusion's own pipelines do not obey; the UNet is as
    the spec says."""
    shutil.copytree(demo(kind), tmp_path / kind)
    config = tmp_path / kind / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": force_upcast}))
    half = HALF | {"checkpoint": str(tmp_path / kind)}

    model = LoadedModel("sd", ModelSpec.model_validate(half), LoadOptions(device=DEVICE))

    assert {tensor.dtype for tensor in model.components["vae"].parameters()} == {dtype}
    assert {tensor.dtype for tensor in model.components["unet"].parameters()} == {torch.float16}


def mean_difference(one: Made, other: Made, row_id: str) -> float:
    first, second = (np.asarray(image_of(made.row(row_id)), dtype=np.int16) for made in (one, other))
    return float(np.abs(first - second).mean())


def with_depth(folder: Path, dtype: str, depth: Record | None) -> Made:
    """A picture from a drawn one and this depth map; without one, the checkpoint estimates the depth."""
    row = {"row_id": "deep", "prompt": "a fox", "seed": 1, "image": drawn_image(), "depth_map": depth}
    spec = job_spec(
        write_rows(folder / "deep.parquet", [row], {"depth_map": IMAGE_TYPE}),
        folder / dtype,
        models={"sd": {"checkpoint": "demo:depth2img", "dtype": dtype}},
        routes={"depth2img": {"model": "sd", "num_inference_steps": 2}},
        default_route="depth2img",
    )
    return make(spec)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "depth",
    [
        depth_map(),
        encoded(Image.fromarray(np.linspace(60_000, 60_003, 64 * 64).reshape(64, 64).astype("u2"))),
    ],
    ids=["all depths of 16 bits", "few depths far off"],
)
def test_half_precision_holds_every_depth_map(tmp_path: Path, dtype: str, depth: Record) -> None:
    """float16 ends at 65504, and both formats have one number for 60,000 to 60,003."""
    half, single = (with_depth(tmp_path, each, depth) for each in (dtype, "float32"))

    assert half.row("deep")["status"] == "ok", half.row("deep")["error_message"]
    assert mean_difference(half, single, "deep") < {"float16": 2, "bfloat16": 8}[dtype]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_holds_an_estimated_depth(tmp_path: Path, dtype: str) -> None:
    """The demo's estimator gives depths of a size that a real one's could have, not 0 in float16."""
    half, single = (with_depth(tmp_path, each, None) for each in (dtype, "float32"))

    assert half.row("deep")["status"] == "ok", half.row("deep")["error_message"]
    assert mean_difference(half, single, "deep") < {"float16": 2, "bfloat16": 8}[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_divided_depth_map_is_equal_to_the_bit(dtype: torch.dtype) -> None:
    """Where plain diffusers can use the map: through the pipeline's own resizing and normalizing."""
    pipeline = diffusers.StableDiffusionDepth2ImgPipeline.from_pretrained(
        demo("depth2img"), use_safetensors=True, dtype=dtype
    )
    depth = Image.open(io.BytesIO(depth_map((40, 56))["bytes"]))
    undivided = torch.from_numpy(np.asarray(depth).astype(np.float32))

    def normalized(values: torch.Tensor) -> torch.Tensor:
        image = Image.new("RGB", (64, 64))
        return pipeline.prepare_depth_map(image, values[None], 1, False, dtype, DEVICE)

    assert torch.equal(normalized(depth_values(depth, dtype)), normalized(undivided))
