"""Facts about routes: which pipeline a row's task and model mean, and what its chain needs and hands on."""

from typing import Any

import pyarrow as pa
import pytest

from actors.rows.routing import ResolvedRoute, Router, Unroutable, hands_on_latents
from schemas.spec.job_spec import JobSpec
from schemas.systems.parameters import SLD_PRESETS
from tests.support.checkpoints import model_card

FAMILIES = {
    "sd": "sd",
    "xl": "sdxl",
    "refiner": "sdxl-refiner",
    "x2": "latent-upscale",
    "x4": "upscale",
    "rgbd": "ldm3d",
    "rgbd-up": "ldm3d-upscale",
    "deep": "depth2img",
}
SIZES = {"xl": 1024, "sd": 512}
MODELS = {
    name: model_card(family=family, height=SIZES.get(name, 256), width=SIZES.get(name, 256) + 64)
    for name, family in FAMILIES.items()
}
ROUTES: dict[str, Any] = {
    "text2img": {"model": "sd"},
    "img2img": {"model": "sd"},
    "inpaint": {"model": "sd"},
    "upscale": {"model": "x4"},
    "latent_upscale": {"model": "x2"},
    "ldm3d": {"model": "rgbd"},
    "ldm3d_upscale": {"model": "rgbd-up"},
    "depth2img": {"model": "deep"},
    "safe": {"model": "sd", "sld_preset": "strong", "sld_threshold": 0.5},
    "poster": {"task": "text2img", "model": "xl", "denoising_end": 0.6},
    "refine": {"task": "img2img", "model": "refiner", "denoising_start": 0.6},
    "3d": {"task": "ldm3d", "model": "rgbd", "then": ["ldm3d_upscale"]},
    "3d-redrawn": {"task": "ldm3d", "model": "rgbd", "then": ["depth2img"]},
    "redrawn": {"task": "text2img", "model": "sd", "then": ["depth2img"]},
    "deepened": {"task": "text2img", "model": "sd", "then": ["ldm3d_upscale"]},
    "filled": {"task": "text2img", "model": "sd", "then": ["inpaint", "img2img"], "keep_steps": True},
    "grown": {"task": "img2img", "model": "sd", "then": ["upscale", "latent_upscale"]},
}


def router(**sections: Any) -> Router:
    """The router of a job with these models and routes."""
    spec: dict[str, Any] = {
        "version": 1,
        "name": "routes",
        "input": {"path": "x"},
        "models": {name: {"checkpoint": "a/b"} for name in MODELS},
        "routes": ROUTES,
        "default_route": "text2img",
        "output": {"path": "out"},
    }
    return Router(JobSpec.model_validate(spec | sections), MODELS)


def resolved(task: str, model: str | None = None) -> ResolvedRoute:
    """The route of rows with this task and model."""
    route = router().resolve(task, model)
    assert isinstance(route, ResolvedRoute)
    return route


@pytest.mark.parametrize(
    ("route", "needed", "optional"),
    [
        ("text2img", {}, []),
        ("img2img", {"image": "the task img2img"}, []),
        ("depth2img", {"image": "the task depth2img"}, ["depth_map"]),
        ("3d", {}, []),
        ("3d-redrawn", {}, []),
        ("redrawn", {}, ["depth_map"]),
        ("deepened", {"depth_map": "step 2 (ldm3d_upscale)"}, []),
        ("filled", {"mask_image": "step 2 (inpaint)"}, []),
        ("grown", {"image": "step 1 (img2img)"}, []),
    ],
)
def test_a_row_brings_what_no_step_before_gives(
    route: str, needed: dict[str, str], optional: list[str]
) -> None:
    """A step gives the next one its image, and its depth map if it makes one."""
    chain = resolved(route)

    assert chain.needed_images() == needed
    assert chain.optional_images() == optional


def test_a_chain_has_all_its_steps_with_their_own_models() -> None:
    """The model that a row names is that of the first step alone."""
    chain = resolved("filled", "xl")

    assert [(step.name, step.model, step.system.family) for step in chain.steps] == [
        ("filled", "xl", "sdxl"),
        ("inpaint", "sd", "sd"),
        ("img2img", "sd", "sd"),
    ]
    assert (chain.keep_steps, resolved("grown").keep_steps) == (True, False)


@pytest.mark.parametrize(
    ("task", "model", "values"),
    [
        (
            "text2img",
            None,
            {"height": 512, "width": 576, "guidance_scale": 7.5, "scheduler": "PNDMScheduler"},
        ),
        ("text2img", "xl", {"height": 1024, "width": 1088, "guidance_scale": 5.0, "denoising_end": None}),
        ("poster", None, {"height": 1024, "denoising_end": 0.6}),
        ("ldm3d_upscale", None, {"height": 1024, "width": 1024, "noise_level": 20}),
        ("safe", None, {**SLD_PRESETS["strong"], "sld_preset": "strong", "sld_threshold": 0.5}),
    ],
)
def test_a_route_beats_what_is_published_and_that_beats_the_checkpoint(
    task: str, model: str | None, values: dict[str, object]
) -> None:
    """Sizes and scheduler are the checkpoint's only where the pipeline has none of its own."""
    defaults = resolved(task, model).defaults

    assert {name: defaults[name] for name in values} == values


@pytest.mark.parametrize(
    ("step", "following", "expected"),
    [
        ("text2img", "latent_upscale", True),
        ("inpaint", "latent_upscale", True),
        ("depth2img", "latent_upscale", True),
        ("text2img", "img2img", False),
        ("poster", "refine", True),
        ("text2img", "refine", False),
        ("poster", "latent_upscale", False),
        ("upscale", "latent_upscale", False),
        ("ldm3d", "latent_upscale", False),
        ("safe", "latent_upscale", False),
    ],
)
def test_latents_go_on_where_the_next_step_was_trained_on_them(
    step: str, following: str, expected: bool
) -> None:
    """From XL's base to its refiner, and from Stable Diffusion to the latent upscaler."""
    assert hands_on_latents(resolved(step), resolved(following)) == expected


def test_rows_of_a_batch_are_routed_by_their_own_task_and_model() -> None:
    """Every pair of two tasks and two models, with nulls and empty texts for the defaults."""
    tasks = [None, "", "text2img", "img2img", "nowhere", None, "img2img", "poster", "text2img", "img2img"]
    models = ["xl", None, "", "xl", "xl", "sd", None, "sd", "nothing", "refiner"]

    positions, routes = router().resolve_batch(pa.array(tasks), pa.array(models), len(tasks))

    assert [(routes[position].name, routes[position].model) for position in positions] == [
        ("text2img", "xl"),
        ("text2img", "sd"),
        ("text2img", "sd"),
        ("img2img", "xl"),
        ("nowhere", ""),
        ("text2img", "sd"),
        ("img2img", "sd"),
        ("poster", "sd"),
        ("text2img", ""),
        ("img2img", "refiner"),
    ]


def test_a_route_is_resolved_once_and_a_name_that_leads_nowhere_is_not_remembered() -> None:
    """There may be as many such names as rows."""
    one = router()

    assert one.resolve(None, "xl") is one.resolve("", "xl")
    assert one.resolve("text2img", "xl") is not one.resolve("text2img", "sd")
    nowhere = one.resolve("nowhere", None)
    assert isinstance(nowhere, Unroutable)
    assert one.resolve("nowhere", None) is not nowhere


def test_rows_without_a_task_need_a_default_route() -> None:
    """They fail alone, where other rows name theirs."""
    route = router(default_route=None).resolve(None, None)

    assert isinstance(route, Unroutable)
    assert route.problem.code == "missing_task"
