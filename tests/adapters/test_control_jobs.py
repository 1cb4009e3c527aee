"""Jobs whose rows are guided by ControlNets: each row is what plain diffusers makes of it."""

import hashlib
import json
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import ControlNetModel

from actors.engine.adapters.false_reports import without_false_reports
from actors.engine.diffusers_engine import DiffusersEngine
from benchmarks.parity.drawn_images import drawn_image, mask
from benchmarks.parity.plain_diffusers import LEVELS
from demo.random_control_nets import save_control_net
from demo.random_loras import plain_pipeline, save_lora
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.systems.control_parameters import CONTROL_IMAGES
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

STEPS = 4
NUMBERS = (
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
    "guess_mode",
)
NETS = ("canny", "depth")
ONE_WITH_AN_END = '[{"controlnet":"canny","control_guidance_end":0.75}]'
TWO_WITH_AN_END = '[{"controlnet":"canny","control_guidance_end":0.75},{"controlnet":"depth"}]'
SUFFIXES = {"text2img": "", "img2img": "Img2Img", "inpaint": "Inpaint"}
PIPELINES = {"sd": "StableDiffusion{}{}Pipeline", "sdxl": "StableDiffusionXL{}{}Pipeline"}
INPUTS: dict[str, Record] = {
    "text2img": {},
    "img2img": {"image": drawn_image(), "strength": 0.8},
    "inpaint": {"image": drawn_image(), "mask_image": mask()},
}
CONTROLS: list[Record] = [
    {"controlnet": None},
    {"controlnet": "canny", "controlnet_conditioning_scale": 0.7},
    {"controlnet": "depth", "control_guidance_start": 0.25, "control_guidance_end": 0.75},
    {"controlnet": "canny", "controlnet_conditioning_scale": 1.3, "control_guidance_end": 0.5},
    {"controlnet": "depth", "guess_mode": True, "controlnet_conditioning_scale": 0.9},
    {"controlnet": ""},
    {"controlnet": "canny", "loras": '{"chalk":0.8}', "control_guidance_start": 0.5},
    {
        "controls": '[{"controlnet":"canny","controlnet_conditioning_scale":0.6},{"controlnet":"depth"}]',
        "control_guidance_end": 0.75,
        "control_image_2": drawn_image((32, 64), "red"),
    },
]

CROPPED: Record = {"controlnet": "canny", "padding_mask_crop": 8, "control_image": drawn_image()}


def rows_of(model: str) -> list[Record]:
    return [
        {
            "row_id": f"{model}-{task}-{number}",
            "model": model,
            "task": task,
            "prompt": f"{number} foxes",
            "seed": 10 + number,
            "guidance_scale": 1.0 if number == 3 else 5.0 + number / 10,
            "control_image": drawn_image(((64, 64), (48, 96), (100, 40))[number % 3]),
            **INPUTS[task],
            **control,
        }
        for task in SUFFIXES
        for number, control in enumerate([*CONTROLS, *([CROPPED] if task == "inpaint" else [])])
    ]


ROWS = [*rows_of("sd"), *rows_of("sdxl")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """ControlNets by model and name, and a LoRA."""
    folder = tmp_path_factory.mktemp("nets")
    return {
        model: {
            **{
                net: save_control_net(folder / f"{model}-{net}", demo(model), seed=n)
                for n, net in enumerate(NETS)
            },
            "chalk": save_lora(folder / f"{model}.safetensors", demo(model), seed=3),
        }
        for model in PIPELINES
    }


def job(
    folders: dict[str, dict[str, Path]],
    folder: Path,
    rows: list[Record] = ROWS,
    types: Record | None = None,
    **batching: Any,
) -> tuple[Made, DiffusersEngine]:
    folder.mkdir(exist_ok=True)
    images = {field: IMAGE_TYPE for field in CONTROL_IMAGES[:2] if any(field in row for row in rows)}
    path = write_rows(folder / "rows.parquet", rows, images | (types or {}))
    models = {
        model: {
            "checkpoint": f"demo:{model}",
            "controlnets": {net: str(folders[model][net]) for net in NETS},
            "loras": {"chalk": str(folders[model]["chalk"])},
        }
        for model in PIPELINES
    }
    routes = {task: {"model": "sd", "num_inference_steps": STEPS} for task in SUFFIXES}
    off = {"checker": "off"}
    spec = job_spec(path, folder / "out", models=models, routes=routes, batching=batching, safety=off)
    plan = plan_for(spec)
    engine = DiffusersEngine(model_cache(spec, loras=plan.job.loras, controlnets=plan.job.controlnets), spec)
    return make(spec, engine), engine


@pytest.fixture(scope="module")
def expected(folders: dict[str, dict[str, Path]]) -> dict[str, np.ndarray]:
    """What plain diffusers makes of each row in a call of its own."""

    @cache
    def base(model: str) -> Any:
        pipeline = plain_pipeline(demo(model), PIPELINES[model].format("", ""))
        with without_false_reports():
            file = folders[model]["chalk"]
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="chalk")
        return pipeline

    @cache
    def pipeline_of(model: str, task: str, names: tuple[str, ...]) -> Any:
        cls = getattr(diffusers, PIPELINES[model].format("ControlNet" if names else "", SUFFIXES[task]))
        nets = [ControlNetModel.from_pretrained(folders[model][name]) for name in names]
        components = {**base(model).components}
        if nets:
            components["controlnet"] = nets if len(nets) > 1 else nets[0]
        if model == "sd":
            components |= {"safety_checker": None, "requires_safety_checker": False}
        pipeline = cls(**components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def plain(row: Record) -> np.ndarray:
        entries = json.loads(row.get("controls") or "[]")
        names = tuple(entry["controlnet"] for entry in entries)
        names = names or ((row["controlnet"],) if row.get("controlnet") else ())
        pipeline = pipeline_of(row["model"], row["task"], names)
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        fields = (*("prompt", "guidance_scale", "strength", "padding_mask_crop"), *(NUMBERS if names else ()))
        arguments = {field: row[field] for field in fields if row.get(field) is not None}
        for field in ("image", "mask_image"):
            if field in row:
                arguments[field] = opened(row[field]).convert("L" if field == "mask_image" else "RGB")
        if names:
            name = "image" if row["task"] == "text2img" else "control_image"
            arguments[name] = [opened(row[field]) for field in CONTROL_IMAGES[: len(names)]]
            if len(names) == 1:
                arguments[name] = arguments[name][0]
        if len(names) > 1:
            scale = "controlnet_conditioning_scale"
            default = signature(pipeline.__call__).parameters[scale].default
            arguments[scale] = [entry.get(scale, default) for entry in entries]
        if names or row["task"] == "inpaint":
            arguments |= {"height": 64, "width": 64}
        if row.get("loras"):
            base(row["model"]).set_adapters(["chalk"], [0.8])
            base(row["model"]).enable_lora()
        else:
            base(row["model"]).disable_lora()
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        output = pipeline(**arguments, num_inference_steps=STEPS, generator=generator)
        return np.asarray(output.images[0]).astype(np.int32)

    return {row["row_id"]: plain(row) for row in ROWS}


def test_each_row_is_what_plain_diffusers_makes_of_it(
    folders: dict[str, dict[str, Path]], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    made, _ = job(folders, tmp_path, shard_rows=3)

    assert {name: far for name, far in levels(made, expected).items() if far > LEVELS} == {}


def test_with_exact_each_row_has_the_bits_of_a_plain_call(
    folders: dict[str, dict[str, Path]], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    made, _ = job(folders, tmp_path, exact=True)

    assert {name: far for name, far in levels(made, expected).items() if far} == {}


def test_rows_with_and_without_control_share_batches_and_stay_the_same(
    folders: dict[str, dict[str, Path]], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    made, engine = job(folders, tmp_path, max_batch_rows=8, shard_rows=256)

    unet = engine.counts["unet"]
    assert unet.images / unet.batches > 6
    assert {name: far for name, far in levels(made, expected).items() if far > LEVELS} == {}


def test_a_control_net_runs_only_at_the_steps_that_it_guides(
    folders: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    """diffusers runs it at all steps. Rows of one ControlNet share its batches whatever their scales are."""
    half = {
        "control_guidance_start": 0.25,
        "control_guidance_end": 0.75,
        "scheduler": "DDIMScheduler",
    }
    rows = [
        {**row, "controlnet": "canny", "controls": None, "controlnet_conditioning_scale": scale, **half}
        for row, scale in zip(ROWS[:2], (0.5, 1.0), strict=True)
    ]

    _, engine = job(folders, tmp_path, rows)

    assert engine.counts["unet"].batches == STEPS
    assert (engine.counts["controlnet.canny"].batches, engine.counts["controlnet.canny"].images) == (2, 4)


def test_what_guided_a_row_is_recorded(folders: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    """With the hash of each ControlNet's weights, whichever way the row asked for it."""
    both = '[{"controlnet":"canny"},{"controlnet":"depth","controlnet_conditioning_scale":0.5}]'
    asked: list[Record] = [{"controlnet": "canny"}, {"controls": both}, {"controlnet": None}]
    rows = [
        {**ROWS[0], "row_id": f"row-{number}", "controls": None, "controlnet": None, **each}
        for number, each in enumerate(asked)
    ]

    made, _ = job(folders, tmp_path, rows, max_batch_rows=4)

    files = {net: folders["sd"][net] / "diffusion_pytorch_model.safetensors" for net in NETS}
    hashes = {net: hashlib.sha256(file.read_bytes()).hexdigest() for net, file in files.items()}
    applied = [
        [
            (each["controlnet"], each["controlnet_conditioning_scale"], each["sha256"])
            for each in row["controls"]
        ]
        for row in (made.row(f"row-{number}") for number in range(3))
    ]
    canny = ("canny", 1.0, hashes["canny"])
    assert applied == [[canny], [canny, ("depth", 0.5, hashes["depth"])], []]
    assert [made.row(f"row-{number}")["controlnet"] for number in range(3)] == ["canny", None, None]


def test_control_changes_pictures(expected: dict[str, np.ndarray]) -> None:
    """Else the other tests would say nothing."""
    for model in PIPELINES:
        far = np.abs(expected[f"{model}-text2img-1"] - expected[f"{model}-text2img-0"]).max()
        assert far > 10


def test_images_may_be_in_the_list_of_controls(folders: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    """The rows are those of columns with one image each; null in the list is the column's image."""
    entry = pa.struct(
        [("controlnet", pa.string()), ("control_image", IMAGE_TYPE), ("control_guidance_end", pa.float32())]
    )
    first, second = ROWS[1]["control_image"], drawn_image((32, 64), "red")
    ends = {"canny": 0.75, "depth": None}
    common = {**ROWS[0], "controlnet": None, "controls": None}
    in_columns = [
        {**common, "control_image": first, "control_image_2": second, "controls": TWO_WITH_AN_END},
        {**common, "control_image": first, "control_image_2": None, "controls": ONE_WITH_AN_END},
        {**common, "control_image": first, "control_image_2": None, "controls": None},
    ]
    in_lists: list[Record] = [
        {"control_image": None, "controls": [("canny", first), ("depth", second)]},
        {"control_image": first, "controls": [("canny", None)]},
        {"control_image": None, "controls": None},
    ]
    listed = [
        {
            **{name: value for name, value in common.items() if name != "control_image_2"},
            "control_image": row["control_image"],
            "controls": row["controls"]
            and [
                {"controlnet": net, "control_image": image, "control_guidance_end": ends[net]}
                for net, image in row["controls"]
            ],
        }
        for row in in_lists
    ]

    one, _ = job(folders, tmp_path / "columns", named(in_columns))
    other, _ = job(folders, tmp_path / "lists", named(listed), types={"controls": pa.list_(entry)})

    assert [row["status"] for row in one.rows] == ["ok"] * 3
    assert [row["image_sha256"] for row in one.rows] == [row["image_sha256"] for row in other.rows]
    assert [row["controls"] for row in one.rows] == [row["controls"] for row in other.rows]
    assert len({row["image_sha256"] for row in one.rows}) == 3


def named(rows: list[Record]) -> list[Record]:
    return [row | {"row_id": f"row-{number}"} for number, row in enumerate(rows)]
