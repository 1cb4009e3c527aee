"""Jobs whose rows are shown pictures by IP-Adapters: each row is what plain diffusers makes of it."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel

from actors.engine.adapters.false_reports import without_false_reports
from actors.engine.diffusers_engine import DiffusersEngine
from benchmarks.parity.drawn_images import drawn_image, mask
from benchmarks.parity.plain_diffusers import LEVELS
from demo.random_control_nets import save_control_net
from demo.random_ip_adapters import save_image_encoder, save_ip_adapter
from demo.random_loras import plain_pipeline, save_lora
from schemas.columns.output_columns import IMAGE_TYPE
from tests.support.checkpoints import demo
from tests.support.in_process import (
    Made,
    Record,
    job_spec,
    levels,
    make,
    model_cache,
    opened,
    plan_for,
    write_rows,
)

STEPS = 2
FORMS: tuple[Any, ...] = ("plain", "plus", "full-face")
SUFFIXES = {"text2img": "", "img2img": "Img2Img", "inpaint": "Inpaint"}
PIPELINES = {"sd": "StableDiffusion{}{}Pipeline", "sdxl": "StableDiffusionXL{}{}Pipeline"}
ENCODER = "models/image_encoder"
IMAGE: Record = {"task": "img2img", "image": drawn_image(), "strength": 0.8}
CONTROL: Record = {"controlnet": "canny", "control_image": drawn_image((48, 96))}
ROWS_OF: dict[str, list[Record]] = {
    "sd": [
        {"ip_adapter": "plain", "ip_adapter_scale": 0.6},
        {"ip_adapter": None},
        {"ip_adapter": "plain", "ip_adapter_scale": 1.2},
        {"ip_adapter": "plus", "guidance_scale": 1.0},
        {"ip_adapter": "plus", "ip_adapter_scale": 0.0},
        {"ip_adapter": "full-face", "ip_adapter_scale": 0.3, "loras": '{"chalk":0.8}'},
        {"ip_adapter": "plain", "ip_adapter_scale": 0.8, **CONTROL},
        {"ip_adapter": "plus", "ip_adapter_scale": 0.7, **IMAGE},
        {"ip_adapter": "plain", **IMAGE, "task": "inpaint", "mask_image": mask()},
    ],
    "sdxl": [
        {"ip_adapter": "plain", "ip_adapter_scale": 0.6, "loras": '{"chalk":0.8}'},
        {"ip_adapter": "", **CONTROL},
        {"ip_adapter": "plus", "ip_adapter_scale": 0.9, **CONTROL},
        {"ip_adapter": "full-face", "ip_adapter_scale": 0.4, **IMAGE},
    ],
}
ROWS: list[Record] = [
    {
        "row_id": f"{model}-{number}",
        "model": model,
        "task": "text2img",
        "prompt": f"{number} foxes",
        "seed": 10 + number,
        "guidance_scale": 5.0 + number / 10,
        "ip_adapter_image": drawn_image((64, 40 + 8 * number), ("red", "blue", "green")[number % 3]),
        **row,
    }
    for model, rows in ROWS_OF.items()
    for number, row in enumerate(rows)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as published ones are: `models` has the adapters and the image encoder."""
    repository = tmp_path_factory.mktemp("repository")
    save_image_encoder(repository / ENCODER, seed=1)
    for model in PIPELINES:
        save_control_net(repository / f"{model}-canny", demo(model), seed=2)
        save_lora(repository / f"{model}-chalk.safetensors", demo(model), seed=3)
        for seed, form in enumerate(FORMS):
            save_ip_adapter(
                repository / "models" / f"{model}-{form}.safetensors", demo(model), seed=seed, form=form
            )
    return repository


def job(
    folder: Path, output: Path, rows: list[Record] = ROWS, *, adapters: bool = True, **batching: Any
) -> tuple[Made, DiffusersEngine]:
    output.mkdir(exist_ok=True)
    images = dict.fromkeys(("control_image", "ip_adapter_image"), IMAGE_TYPE)
    path = write_rows(output / "rows.parquet", rows, images)
    models = {
        model: {
            "checkpoint": f"demo:{model}",
            "controlnets": {"canny": str(folder / f"{model}-canny")},
            "loras": {"chalk": str(folder / f"{model}-chalk.safetensors")},
            "ip_adapters": {
                form: {
                    "path": str(folder),
                    "subfolder": "models",
                    "weight_name": f"{model}-{form}.safetensors",
                }
                for form in FORMS
                if adapters
            },
        }
        for model in PIPELINES
    }
    routes = {task: {"model": "sd", "num_inference_steps": STEPS} for task in SUFFIXES}
    off = {"checker": "off"}
    spec = job_spec(path, output / "out", models=models, routes=routes, batching=batching, safety=off)
    found = plan_for(spec).job
    cache_of = model_cache(
        spec, loras=found.loras, controlnets=found.controlnets, ip_adapters=found.ip_adapters
    )
    engine = DiffusersEngine(cache_of, spec)
    return make(spec, engine), engine


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, np.ndarray]:
    """What plain diffusers makes of each row in a call of its own."""

    @cache
    def base(model: str) -> Any:
        pipeline = plain_pipeline(demo(model), PIPELINES[model].format("", ""))
        with without_false_reports():
            pipeline.load_lora_weights(
                str(folder), weight_name=f"{model}-chalk.safetensors", adapter_name="chalk"
            )
        return pipeline

    def pipeline_of(row: Record) -> Any:
        model, guided = row["model"], bool(row.get("controlnet"))
        cls = getattr(
            diffusers, PIPELINES[model].format("ControlNet" if guided else "", SUFFIXES[row["task"]])
        )
        components = {**base(model).components}
        if guided:
            components["controlnet"] = ControlNetModel.from_pretrained(folder / f"{model}-canny")
        if model == "sd":
            components |= {"safety_checker": None, "requires_safety_checker": False}
        pipeline = cls(**components)
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def plain(row: Record) -> np.ndarray:
        pipeline = pipeline_of(row)
        arguments = {name: row[name] for name in ("prompt", "guidance_scale", "strength") if name in row}
        for field in ("image", "mask_image"):
            if field in row:
                arguments[field] = opened(row[field]).convert("L" if field == "mask_image" else "RGB")
        if row.get("controlnet"):
            arguments |= {"image": opened(row["control_image"]), "height": 64, "width": 64}
        if row["task"] == "inpaint":
            arguments |= {"height": 64, "width": 64}
        if row.get("loras"):
            pipeline.set_adapters(["chalk"], [0.8])
            pipeline.enable_lora()
        else:
            pipeline.disable_lora()
        if row["ip_adapter"]:
            with without_false_reports():
                pipeline.load_ip_adapter(
                    str(folder),
                    subfolder="models",
                    weight_name=f"{row['model']}-{row['ip_adapter']}.safetensors",
                )
            pipeline.set_ip_adapter_scale(row.get("ip_adapter_scale", 1.0))
            arguments["ip_adapter_image"] = [opened(row["ip_adapter_image"])]
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        output = pipeline(**arguments, num_inference_steps=STEPS, generator=generator)
        if row["ip_adapter"]:
            pipeline.unload_ip_adapter()
        return np.asarray(output.images[0]).astype(np.int32)

    return {row["row_id"]: plain(row) for row in ROWS}


@pytest.mark.parametrize("shard_rows", [3, 256])
def test_each_row_is_what_plain_diffusers_makes_of_it(
    folder: Path, expected: dict[str, np.ndarray], tmp_path: Path, shard_rows: int
) -> None:
    """Rows with pictures, LoRAs, ControlNets and none share batches, whatever forms the adapters have."""
    made, engine = job(folder, tmp_path, shard_rows=shard_rows)

    assert {name: far for name, far in levels(made, expected).items() if far > LEVELS} == {}
    if shard_rows == 256:
        unet = engine.counts["unet"]
        assert unet.images / unet.batches > 3


def test_with_exact_each_row_has_the_bits_of_a_plain_call(
    folder: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    made, _ = job(folder, tmp_path, exact=True)

    assert {name: far for name, far in levels(made, expected).items() if far} == {}


def test_pictures_change_images(expected: dict[str, np.ndarray], folder: Path, tmp_path: Path) -> None:
    """Else the other tests would say nothing. A scale of 0 changes nothing; what was applied is recorded."""
    idle = [{**row, "ip_adapter": None} for row in ROWS if row["row_id"] in ("sd-0", "sd-4")]
    shown = [row for row in ROWS if row["row_id"] in ("sd-0", "sd-4")]

    (without, _), (with_pictures, _) = (
        job(folder, tmp_path / name, rows, exact=True) for name, rows in (("idle", idle), ("shown", shown))
    )

    far = levels(without, {name: expected[name] for name in ("sd-0", "sd-4")})
    assert far["sd-0"] > 10
    assert far["sd-4"] == 0
    digest = hashlib.sha256((folder / "models/sd-plain.safetensors").read_bytes()).hexdigest()
    columns = ("ip_adapter", "ip_adapter_scale", "ip_adapter_sha256")
    assert [with_pictures.row("sd-0")[name] for name in columns] == ["plain", 0.6, digest]
    assert [with_pictures.row("sd-4")[name] for name in columns] == [None, None, None]


def test_rows_without_pictures_keep_their_bits(folder: Path, tmp_path: Path) -> None:
    """A batch in which no row has one runs as in a job whose models have no IP-Adapters."""
    names = ("row_id", "model", "task", "prompt", "seed")
    rows = [{name: row[name] for name in names} for row in ROWS[:3]]

    (one, engine), (other, _) = (
        job(folder, tmp_path / str(adapters), rows, adapters=adapters) for adapters in (True, False)
    )

    assert [row["image_sha256"] for row in one.rows] == [row["image_sha256"] for row in other.rows]
    assert not any("image_encoder" in name for name in engine.counts)
    assert "ip_adapter" not in other.rows[0]
