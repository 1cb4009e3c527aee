"""Facts about the checks of a spec's routes, which come before any row is read."""

from typing import Any

import pytest

from jobs.survey.route_checks import check_routes
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from tests.support.checkpoints import model_card

SETTINGS = {"skip_prk_steps": True}
MODELS = {
    "sd": model_card(max_clip_skip=12, scheduler_settings=SETTINGS),
    "wide": model_card(size_factor=16),
    "refiner": model_card(family="sdxl-refiner", scheduler_settings=SETTINGS),
    "x4": model_card(family="upscale", max_noise_level=350),
    "x2": model_card(family="latent-upscale"),
}
TO_DOUBLE: dict[str, Any] = {
    "chain": {"task": "text2img", "model": "sd", "then": ["fill", "double"]},
    "double": {"task": "latent_upscale", "model": "x2", "scheduler": "Euler"},
}
"""A chain whose last step needs multiples of 64."""
FIRST: dict[str, Any] = {"task": "text2img", "model": "sd"}
ZERO_SNR = {
    "scheduler": "DDIMScheduler",
    "scheduler_options": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}
"""A scheduler that must not begin at the first timestep of a checkpoint that predicts noise."""
MANY_STEPS = {"scheduler": "LCMScheduler", "num_inference_steps": 51}
"""One step more than this scheduler has."""


def refusal(routes: dict[str, Any]) -> str:
    """The message with which routes are refused; empty where they fit."""
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "name": "routes",
            "input": {"path": "x"},
            "models": {name: {"checkpoint": "a/b"} for name in MODELS},
            "routes": routes,
            "output": {"path": "out"},
        }
    )
    try:
        check_routes(spec, MODELS)
    except SpecError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "routes",
    [
        {"text2img": {"model": "sd", "clip_skip": 12, "height": 504, "width": 520}},
        {"upscale": {"model": "x4", "noise_level": 350}},
        {"img2img": {"model": "sd", "num_inference_steps": 1, "strength": 0.1}},
        {"chain": FIRST | {"then": ["img2img"]}}
        | {"img2img": {"model": "sd", "num_inference_steps": 10, "strength": 0.1}},
        {"chain": FIRST | {"then": ["img2img"]}}
        | {"img2img": {"model": "refiner", "num_inference_steps": 2, "denoising_start": 0.5}},
        {"img2img": {"model": "sd", "strength": 0.5, **ZERO_SNR}},
        {"img2img": {"model": "refiner", "strength": 1.0, "denoising_start": 0.5, **ZERO_SNR}},
        {"text2img": {"model": "sd", **MANY_STEPS}},
        TO_DOUBLE | {"fill": {"task": "inpaint", "model": "sd", "height": 128, "width": 64}},
        TO_DOUBLE | {"fill": {"task": "inpaint", "model": "sd", "height": 72, "padding_mask_crop": 0}},
    ],
)
def test_a_route_that_fits_its_checkpoint_is_taken(routes: dict[str, Any]) -> None:
    """Bounds include their ends, and what rows may still change is not refused."""
    assert refusal(routes) == ""


@pytest.mark.parametrize(
    ("routes", "says"),
    [
        (
            {"text2img": {"model": "sd", "clip_skip": 13}},
            "routes.text2img.clip_skip: 13 is more than the 12 that model `sd` takes",
        ),
        (
            {"upscale": {"model": "x4", "noise_level": 351}},
            "routes.upscale.noise_level: 351 is more than the 350 that model `x4` takes",
        ),
        (
            {"text2img": {"model": "wide", "height": 520}},
            "routes.text2img.height: 520 is not a multiple of 16, the VAE factor of model `wide`",
        ),
        ({"text2img": {"model": "wide", "width": 520}}, "routes.text2img.width: 520 is not a multiple of 16"),
        (
            {"chain": FIRST | {"then": ["img2img"]}}
            | {"img2img": {"model": "sd", "num_inference_steps": 10, "strength": 0.09}},
            "routes.img2img: strength 0.09 of 10 steps runs no step at all",
        ),
        (
            {"chain": FIRST | {"then": ["img2img", "text2img"]}}
            | {"img2img": {"model": "sd"}, "text2img": {"model": "sd"}},
            "routes.chain.then: `text2img` (text2img) takes no image",
        ),
        ({"text2img": {"model": "sd", **ZERO_SNR}}, "begins where there is no signal"),
        ({"img2img": {"model": "sd", "strength": 1.0, **ZERO_SNR}}, "begins where there is no signal"),
        (
            {"chain": FIRST | {"then": ["img2img"]}, "img2img": {"model": "sd", **MANY_STEPS}},
            "routes.img2img.scheduler: LCMScheduler takes at most 50 steps",
        ),
        (
            {"text2img": {"model": "sd", **ZERO_SNR}, "img2img": {"model": "sd"}},
            "routes.text2img.scheduler_options: ",
        ),
        (
            TO_DOUBLE | {"fill": {"task": "inpaint", "model": "sd", "height": 128, "width": 72}},
            "routes.chain.then: `double` (latent_upscale) would be given a width of 72; it needs",
        ),
        ({"text2img": {"model": "sd"}, "upscale": {"model": "sd"}}, "routes.upscale: model `sd` (sd) does"),
    ],
)
def test_the_first_route_that_does_not_fit_is_named(routes: dict[str, Any], says: str) -> None:
    """With its key. Rows cannot change the values of a chain's later steps, so these are checked whole."""
    assert says in refusal(routes)
