"""Jobs whose prompts have learned tokens: each row is what plain diffusers makes of it with these tokens."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actors.engine.calls.prompt_encoding import tokenize
from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.quirks.clip_skip import enable_clip_skip
from benchmarks.parity.drawn_images import drawn_image, mask
from benchmarks.parity.plain_diffusers import LEVELS
from demo.random_embeddings import save_embedding
from demo.random_loras import plain_pipeline
from schemas.errors import SpecError
from tests.support.checkpoints import demo
from tests.support.in_process import (
    Made,
    Record,
    job_spec,
    levels,
    make,
    model_cache,
    models_of,
    opened,
    plan_for,
    write_rows,
)

IMAGE, MASK = drawn_image(), mask()
TASKS = {"text2img": "", "img2img": "Img2Img", "inpaint": "Inpaint"}
PIPELINES = {
    "sd": ("sd", "StableDiffusion{}Pipeline"),
    "bare": ("sd", "StableDiffusion{}Pipeline"),
    "xl": ("sdxl", "StableDiffusionXL{}Pipeline"),
}
INPUTS: dict[str, Record] = {
    "text2img": {},
    "img2img": {"image": IMAGE, "strength": 0.7},
    "inpaint": {"image": IMAGE, "mask_image": MASK},
}
TEXTS = (
    "a <cat-toy> on sand",
    "grey sea",
    "badhand-v4, blurry",
    "two <cat-toy>s, badhand-v4 and a <CAT-toy>",
    "Badhand-V4 by night",
    "style " * 2 + "badhand-v4 " * 8,
)
Files = dict[str, dict[str, Path]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of tokens by model and token. `bare` has the same checkpoint as `sd`, and none."""
    folder = tmp_path_factory.mktemp("embeddings")
    xl = ("clip_l", "clip_g")
    return {
        "sd": {
            "<cat-toy>": save_embedding(folder / "cat.safetensors", seed=1, name="<learned>"),
            "badhand-v4": save_embedding(folder / "bad.safetensors", seed=2, num_vectors=12),
            "Style": save_embedding(folder / "style.safetensors", seed=3),
        },
        "bare": {},
        "xl": {
            "badhand-v4": save_embedding(folder / "xl-bad.safetensors", seed=4, num_vectors=3, name=xl),
            "<cat-toy>": save_embedding(folder / "xl-cat.safetensors", seed=5, num_vectors=(1, 2), name=xl),
        },
    }


def rows_of(model: str, count: int) -> list[Record]:
    return [
        {
            "row_id": f"{model}-{number}",
            "model": model,
            "task": task,
            "prompt": f"{number} {TEXTS[number % 6]}",
            "negative_prompt": TEXTS[(number + 2) % 5] if number % 2 else None,
            "prompt_2": TEXTS[number // 2 % 5] if model == "xl" and number % 4 == 1 else None,
            "clip_skip": 1 if number % 4 == 2 else None,
            "seed": 10 + number,
            "guidance_scale": 1.0 if number % 5 == 4 else 5.0 + number / 10,
            **INPUTS[task],
        }
        for number in range(count)
        for task in [[*TASKS][number % 5 % 3]]
    ]


ROWS = [*rows_of("sd", 12), *rows_of("xl", 9), *rows_of("bare", 3)]


def models_with(files: Files) -> Record:
    return {
        model: {
            "checkpoint": f"demo:{kind}",
            "embeddings": {token: str(file) for token, file in files[model].items()},
        }
        for model, (kind, _) in PIPELINES.items()
    }


def job(files: Files, folder: Path, **batching: Any) -> tuple[Made, DiffusersEngine]:
    path = write_rows(folder / "rows.parquet", ROWS)
    routes = {task: {"model": "sd", "num_inference_steps": 2} for task in TASKS}
    spec = job_spec(
        path,
        folder / "out",
        models=models_with(files),
        routes=routes,
        batching=batching,
        safety={"checker": "off"},
    )
    engine = DiffusersEngine(models_of(plan_for(spec).job), spec)
    return make(spec, engine), engine


def learn(pipeline: Any, model: str, files: Files) -> None:
    """Load tokens as the documentation of diffusers does."""
    for token, file in files[model].items():
        if model != "xl":
            pipeline.load_textual_inversion(
                str(file.parent), weight_name=file.name, token=token, use_safetensors=True
            )
            continue
        vectors = load_file(file)
        for name, suffix in (("clip_l", ""), ("clip_g", "_2")):
            pipeline.load_textual_inversion(
                vectors[name],
                token=token,
                text_encoder=getattr(pipeline, f"text_encoder{suffix}"),
                tokenizer=getattr(pipeline, f"tokenizer{suffix}"),
            )


@pytest.fixture(scope="module")
def expected(files: Files) -> dict[str, np.ndarray]:
    """What plain diffusers makes of each row in a call of its own."""

    @cache
    def pipeline_of(model: str, task: str) -> Any:
        kind, cls = PIPELINES[model]
        pipeline = plain_pipeline(demo(kind), cls.format(TASKS[task]))
        learn(pipeline, model, files)
        if model != "xl":
            enable_clip_skip(pipeline.text_encoder)
        return pipeline

    def plain(row: Record) -> np.ndarray:
        pipeline = pipeline_of(row["model"], row["task"])
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        names = ("prompt", "negative_prompt", "prompt_2", "guidance_scale", "strength", "clip_skip")
        arguments = {name: row[name] for name in names if row.get(name) is not None}
        for field, mode in (("image", "RGB"), ("mask_image", "L")):
            if field in row:
                arguments[field] = opened(row[field]).convert(mode)
        if row["task"] == "inpaint":
            arguments |= {"height": 64, "width": 64}
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        output = pipeline(**arguments, num_inference_steps=2, generator=generator, output_type="np")
        return (output.images[0] * 255).round().astype(np.int32)

    return {row["row_id"]: plain(row) for row in ROWS}


def test_each_row_is_what_plain_diffusers_makes_of_it(
    files: Files, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Also of the model without tokens, which has the checkpoint of one that has them. Rows share batches."""
    made, engine = job(files, tmp_path, shard_rows=7)

    assert {name: far for name, far in levels(made, expected).items() if far > LEVELS} == {}
    assert engine.counts["unet"].images / engine.counts["unet"].batches > 2


def test_with_exact_each_row_has_the_bits_of_a_plain_call(
    files: Files, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    made, _ = job(files, tmp_path, exact=True)

    assert {name: far for name, far in levels(made, expected).items() if far} == {}


def test_tokens_change_pictures(expected: dict[str, np.ndarray]) -> None:
    """Else the other tests would say nothing."""
    assert np.abs(expected["sd-0"] - expected["bare-0"]).max() > 10


def test_a_token_counts_as_many_as_it_has_vectors(files: Files, tmp_path: Path) -> None:
    """In long prompts, which are cut or encoded in several windows, and with weights."""
    rows = [{"row_id": "long", "prompt": "badhand-v4 " * 7}, {"row_id": "fits", "prompt": "badhand-v4 " * 6}]
    path = write_rows(tmp_path / "rows.parquet", rows)
    spec = job_spec(path, tmp_path / "out", models=models_with(files))

    made = make(spec)

    assert {row["row_id"]: row["prompt_truncated"] for row in made.rows} == {
        "long": "".join(f"badhand-v4_{number}" for number in range(3, 12)),
        "fits": None,
    }
    models = models_of(plan_for(spec).job)
    for model, encoder, numbers in (("sd", "", (14, 1)), ("xl", "", (5, 1)), ("xl", "_2", (5, 2))):
        tokenizer = models.get(model).components[f"tokenizer{encoder}"]
        texts = ["a (badhand-v4)1.3 b", "<cat-toy>"]
        assert tuple(len(ids) for _, ids in tokenize(tokenizer, texts, weighted=True)) == numbers


@pytest.mark.parametrize("model", ["sd", "xl"])
def test_weights_of_one_leave_tokens_of_several_vectors_as_they_are(
    model: str, files: Files, tmp_path: Path
) -> None:
    rows = [
        {"row_id": prompt, "seed": 1, "prompt": prompt, "model": model}
        for prompt in ("a badhand-v4 fox", "a (badhand-v4)1.0 fox", "a (badhand-v4)0.5 fox")
    ]
    path = write_rows(tmp_path / "rows.parquet", rows)

    made = make(job_spec(path, tmp_path / "out", models=models_with(files), prompt_weights="compel"))

    plain, same, other = (np.asarray(opened(row["image"]), np.int32) for row in made.rows)
    assert np.abs(plain - same).max() <= LEVELS
    assert np.abs(plain - other).max() > LEVELS


def test_a_worker_refuses_a_file_that_has_changed_since_the_plan(files: Files, tmp_path: Path) -> None:
    file = save_embedding(tmp_path / "x.safetensors", seed=1)
    path = write_rows(tmp_path / "rows.parquet", [{"row_id": "a", "prompt": "x"}])
    models = {"sd": {"checkpoint": "demo:sd", "embeddings": {"<x>": str(file)}}}
    spec = job_spec(path, tmp_path / "out", models=models)
    embeddings = plan_for(spec).job.embeddings
    save_embedding(file, seed=2)

    with pytest.raises(SpecError, match=r"the embedding `<x>`: .*does not have the content that the driver"):
        model_cache(spec, embeddings=embeddings).get("sd")
