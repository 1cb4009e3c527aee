"""Jobs whose rows have LoRAs: each row is what plain diffusers makes of it with `set_adapters`."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.engine.adapters.false_reports import without_false_reports
from actors.engine.diffusers_engine import DiffusersEngine
from benchmarks.parity.drawn_images import drawn_image, mask
from benchmarks.parity.plain_diffusers import LEVELS
from demo.random_loras import ATTENTION, CONVOLUTIONS, TEXT, plain_pipeline, save_lora
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

IMAGE, MASK = drawn_image(), mask()
TASKS = {"text2img": "", "img2img": "Img2Img", "inpaint": "Inpaint"}
PIPELINES = {"sd": "StableDiffusion{}Pipeline", "sdxl": "StableDiffusionXL{}Pipeline"}
INPUTS: dict[str, Record] = {
    "text2img": {},
    "img2img": {"image": IMAGE, "strength": 0.7},
    "inpaint": {"image": IMAGE, "mask_image": MASK},
}
NAMES = ("chalk", "ink", "wash", "neon")


def loras_of(number: int) -> dict[str, float]:
    """The LoRAs of row `number`: none, one, or two of them, with weights that no other row has."""
    first, second = NAMES[number % 4], NAMES[(number + 1) % 4]
    weights = {first: round(0.3 + number / 20, 2), second: round(-0.2 - number / 30, 2)}
    return dict([*weights.items()][: number % 3])


def rows_of(model: str, count: int) -> list[Record]:
    return [
        {
            "row_id": f"{model}-{number}",
            "model": model,
            "task": task,
            "prompt": f"{number} foxes",
            "negative_prompt": "grey" if number % 2 else None,
            "seed": 10 + number,
            "guidance_scale": 1.0 if number % 5 == 4 else 5.0 + number / 10,
            "loras": [{"name": name, "weight": weight} for name, weight in loras_of(number).items()],
            **INPUTS[task],
        }
        for number in range(count)
        for task in [[*TASKS][number % 4 % 3]]
    ]


ROWS = [*rows_of("sd", 18), *rows_of("sdxl", 9)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """LoRAs of other ranks and layers by model and name."""
    folder = tmp_path_factory.mktemp("loras")
    kinds: list[Record] = [
        {"rank": 4, "alpha": 2},
        {"rank": 8, "alpha": 4, "text": TEXT, "kohya": True},
        {"rank": 2, "alpha": 4, "layers": (*ATTENTION, *CONVOLUTIONS)},
        {"rank": 3, "alpha": 3, "layers": (), "text": TEXT},
    ]
    return {
        model: {
            name: save_lora(folder / f"{model}-{name}.safetensors", demo(model), seed=seed, **kind)
            for seed, (name, kind) in enumerate(zip(NAMES, kinds, strict=True))
        }
        for model in PIPELINES
    }


def job(files: dict[str, dict[str, Path]], folder: Path, **batching: Any) -> tuple[Made, DiffusersEngine]:
    path = write_rows(folder / "rows.parquet", ROWS)
    models = {
        model: {
            "checkpoint": f"demo:{model}",
            "loras": {name: str(file) for name, file in files[model].items()},
        }
        for model in PIPELINES
    }
    routes = {task: {"model": "sd", "num_inference_steps": 3} for task in TASKS}
    off = {"checker": "off"}
    spec = job_spec(path, folder / "out", models=models, routes=routes, batching=batching, safety=off)
    plan = plan_for(spec)
    engine = DiffusersEngine(model_cache(spec, loras=plan.job.loras), spec)
    return make(spec, engine), engine


@pytest.fixture(scope="module")
def expected(files: dict[str, dict[str, Path]]) -> dict[str, np.ndarray]:
    """What plain diffusers makes of each row in a call of its own."""

    @cache
    def pipeline_of(model: str, task: str) -> Any:
        pipeline = plain_pipeline(demo(model), PIPELINES[model].format(TASKS[task]))
        with without_false_reports():
            for name, file in files[model].items():
                pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
        return pipeline

    def plain(row: Record) -> np.ndarray:
        pipeline = pipeline_of(row["model"], row["task"])
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        arguments = {
            name: row[name]
            for name in ("prompt", "negative_prompt", "guidance_scale", "strength")
            if row.get(name) is not None
        }
        for field, mode in (("image", "RGB"), ("mask_image", "L")):
            if field in row:
                arguments[field] = opened(row[field]).convert(mode)
        if row["task"] == "inpaint":
            arguments |= {"height": 64, "width": 64}
        loras = {each["name"]: each["weight"] for each in row["loras"]}
        if loras:
            pipeline.set_adapters([*loras], [*loras.values()])
            pipeline.enable_lora()
        else:
            pipeline.disable_lora()
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        output = pipeline(**arguments, num_inference_steps=3, generator=generator, output_type="np")
        return (output.images[0] * 255).round().astype(np.int32)

    return {row["row_id"]: plain(row) for row in ROWS}


@pytest.mark.parametrize("shard_rows", [1, 5])
def test_each_row_is_what_plain_diffusers_makes_of_it(
    files: dict[str, dict[str, Path]], expected: dict[str, np.ndarray], tmp_path: Path, shard_rows: int
) -> None:
    made, _ = job(files, tmp_path, shard_rows=shard_rows)

    assert {name: far for name, far in levels(made, expected).items() if far > LEVELS} == {}


def test_with_exact_each_row_has_the_bits_of_a_plain_call(
    files: dict[str, dict[str, Path]], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    made, _ = job(files, tmp_path, exact=True)

    assert {name: far for name, far in levels(made, expected).items() if far} == {}


def test_rows_with_other_loras_share_batches_and_stay_the_same(
    files: dict[str, dict[str, Path]], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    made, engine = job(files, tmp_path, max_batch_rows=8, shard_rows=256)

    unet = engine.counts["unet"]
    assert unet.images / unet.batches > 6
    assert {name: far for name, far in levels(made, expected).items() if far > LEVELS} == {}


def test_loras_change_pictures(expected: dict[str, np.ndarray]) -> None:
    """Else the other tests would say nothing."""
    far = np.abs(expected["sd-1"] - expected["sd-0"]).max()
    assert far > 10
