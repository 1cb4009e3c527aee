"""Recipes for few-step models: their values, who overrides them, and the note about a route without one."""

import json
from pathlib import Path
from typing import Any

import pytest

from demo.random_loras import save_lora
from jobs.survey.survey import make_survey
from schemas.systems.parameters import PARAMETERS, with_preset
from schemas.systems.recipes import RECIPES, recipe_of
from schemas.systems.schedulers import SCHEDULERS, parse_options
from tests.support.checkpoints import sd_checkpoint
from tests.support.in_process import job_spec, make, write_rows


def test_every_recipe_is_a_choice_and_names_what_diffusers_has() -> None:
    assert PARAMETERS["recipe"].choices == tuple(RECIPES)
    for values in RECIPES.values():
        assert values.keys() <= PARAMETERS.keys()
        options = parse_options(str(values.get("scheduler_options", "{}")))
        assert options.keys() <= SCHEDULERS[str(values["scheduler"])].keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_value_that_is_set_overrides_the_recipes(recipe: str) -> None:
    values = with_preset({"recipe": recipe, "num_inference_steps": 8})

    assert values == {**RECIPES[recipe], "recipe": recipe, "num_inference_steps": 8}


def test_rows_are_made_by_their_routes_recipe_or_by_their_own(tmp_path: Path) -> None:
    rows = [
        {"row_id": "route", "prompt": "a fox"},
        {"row_id": "steps", "prompt": "a fox", "num_inference_steps": 3},
        {"row_id": "own", "prompt": "a fox", "recipe": "hyper"},
    ]
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", rows),
        tmp_path / "out",
        routes={"text2img": {"model": "sd", "recipe": "turbo"}},
    )

    made = make(spec)

    seen = {
        row["row_id"]: (row["recipe"], row["scheduler"], row["num_inference_steps"], row["guidance_scale"])
        for row in made.rows
    }
    assert seen == {
        "route": ("turbo", "EulerAncestralDiscreteScheduler", 1, 0.0),
        "steps": ("turbo", "EulerAncestralDiscreteScheduler", 3, 0.0),
        "own": ("hyper", "DDIMScheduler", 4, 0.0),
    }
    options = {row["row_id"]: json.loads(row["scheduler_options"]) for row in made.rows}
    assert {*map(str, options.values())} == {"{'timestep_spacing': 'trailing'}"}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("latent-consistency/lcm-lora-sdv1-5", "lcm"),
        ("SimianLuo/LCM_Dreamshaper_v7", "lcm"),
        ("stabilityai/sdxl-turbo", "turbo"),
        ("Lykon/dreamshaper-xl-v2-turbo", "turbo"),
        ("s3://models/sdxl_lightning_4step_lora.safetensors", "lightning"),
        ("ByteDance/Hyper-SD/Hyper-SDXL-8steps-lora.safetensors", "hyper"),
        ("stabilityai/stable-diffusion-xl-base-1.0", None),
        ("artists/hyperrealism", None),
        ("people/turbofan", None),
    ],
)
def test_few_step_models_are_known_by_their_names(name: str, recipe: str | None) -> None:
    assert recipe_of(name) == recipe


@pytest.mark.parametrize(
    ("route", "noted"),
    [
        ({"loras": {"fast": 1.0}}, True),
        ({"loras": {"fast": 1.0}, "recipe": "lcm"}, False),
        ({"loras": {"fast": 1.0}, "recipe": "lcm", "guidance_scale": 7.5}, True),
        (
            {"loras": {"fast": 1.0}, "scheduler": "LCM", "num_inference_steps": 8, "guidance_scale": 1.5},
            False,
        ),
        ({"loras": {"fast": 0.0}}, False),
        ({}, False),
    ],
    ids=["ordinary-values", "recipe", "too-much-guidance", "by-hand", "weight-0", "not-used"],
)
def test_the_plan_notes_a_route_that_spoils_a_few_step_lora(
    tmp_path: Path, route: dict[str, Any], noted: bool
) -> None:
    """By the name of its file."""
    lora = save_lora(tmp_path / "lcm-lora.safetensors", sd_checkpoint(), seed=1)
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", [{"row_id": 1, "prompt": "a fox"}]),
        tmp_path / "out",
        models={"sd": {"checkpoint": "demo:sd", "loras": {"fast": str(lora)}}},
        routes={"text2img": {"model": "sd", **route}},
    )

    notes = [note for note in make_survey(spec).notes if "recipe" in note]

    assert len(notes) == noted
    assert all("lcm-lora.safetensors is a few-step model by its name" in note for note in notes)
    assert all("`recipe: lcm`" in note for note in notes)


@pytest.mark.parametrize(
    ("model", "loras", "noted"),
    [("sd", {"lcm": 1.0}, "lcm"), ("turbo", {}, "turbo"), ("sd", {}, "")],
)
def test_a_few_step_model_is_known_by_the_specs_own_name_for_it_too(
    tmp_path: Path, model: str, loras: dict[str, float], noted: str
) -> None:
    """Many files are called `pytorch_lora_weights.safetensors`."""
    lora = save_lora(tmp_path / "weights.safetensors", sd_checkpoint(), seed=1)
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", [{"row_id": 1, "prompt": "a fox"}]),
        tmp_path / "out",
        models={model: {"checkpoint": "demo:sd", "loras": {"lcm": str(lora)}}},
        routes={"text2img": {"model": model, "loras": loras}},
    )

    notes = [note for note in make_survey(spec).notes if "recipe" in note]

    assert len(notes) == bool(noted)
    assert all(f": {noted} is a few-step model by its name" in note for note in notes)
