"""Facts about the rules for schedulers and their options, as they are told without diffusers."""

import json
from typing import Any

import pytest

from schemas.systems.scheduler_rules import Published, refusal
from schemas.systems.schedulers import options_text, parse_options, scheduler_settings

ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
RUNGE_KUTTA = {"skip_prk_steps": False}
TO_ZERO = {"lower_order_final": False, "final_sigmas_type": "zero"}
EULER_ONLY = {"only": frozenset({"EulerDiscreteScheduler"})}


def reason(
    scheduler: str,
    options: dict[str, Any] | None = None,
    *,
    published: str = "PNDMScheduler",
    settings: dict[str, Any] | None = None,
    only: frozenset[str] | None = None,
    steps: int | None = 20,
    begins_late: bool = False,
) -> str:
    """The reason why a row cannot have this scheduler; empty if it can."""
    own = tuple(sorted((settings or {"skip_prk_steps": True}).items()))
    checkpoint = Published(name=published, settings=own, only=only)
    text = None if options is None else json.dumps(options)
    return refusal(scheduler, text, checkpoint, steps, begins_late) or ""


@pytest.mark.parametrize(
    ("scheduler", "options", "others", "says"),
    [
        # The number of steps, at each of its ends.
        ("LCMScheduler", None, {"steps": 50}, ""),
        ("LCMScheduler", None, {"steps": 51}, "takes at most 50 steps"),
        ("LCMScheduler", {"original_inference_steps": 8}, {"steps": 9}, "takes at most 8 steps"),
        ("LCMScheduler", None, {"settings": {"original_inference_steps": 8}, "steps": 9}, "at most 8 steps"),
        ("LCMScheduler", None, {"steps": None}, ""),
        ("PNDMScheduler", RUNGE_KUTTA, {"steps": 4}, ""),
        ("PNDMScheduler", RUNGE_KUTTA, {"steps": 3}, "needs at least 4 steps"),
        ("PNDMScheduler", RUNGE_KUTTA, {"begins_late": True}, "cannot leave out the first steps"),
        ("PNDMScheduler", None, {"begins_late": True, "steps": 1}, ""),
        ("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}, {"steps": 999}, ""),
        (
            "UniPCMultistepScheduler",
            {"timestep_spacing": "linspace"},
            {"steps": 1000},
            "does not have 1000 different timesteps",
        ),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, {"steps": 1000}, ""),
        ("DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 0}, {"steps": 1000}, ""),
        (
            "DDIMScheduler",
            {"timestep_spacing": "leading", "steps_offset": 1},
            {"steps": 1000},
            "does not have 1000 different timesteps",
        ),
        # Where a row begins.
        ("DDIMScheduler", ZERO_SNR, {}, "begins where there is no signal"),
        ("DDIMScheduler", ZERO_SNR, {"begins_late": True}, ""),
        ("DDIMScheduler", ZERO_SNR, {"settings": {"prediction_type": "v_prediction"}}, ""),
        ("EulerDiscreteScheduler", ZERO_SNR, {}, ""),
        # What a row sets beats what the checkpoint is published with.
        ("DDIMScheduler", {"rescale_betas_zero_snr": False}, {"settings": ZERO_SNR}, ""),
        ("DDIMScheduler", None, {"settings": ZERO_SNR}, "begins where there is no signal"),
        (
            "EulerDiscreteScheduler",
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            {},
            "takes only one of use_karras_sigmas, use_beta_sigmas",
        ),
        (
            "EulerDiscreteScheduler",
            {"use_karras_sigmas": True},
            {"settings": {"use_exponential_sigmas": True}},
            "takes only one of use_karras_sigmas, use_exponential_sigmas",
        ),
        (
            "UniPCMultistepScheduler",
            TO_ZERO,
            {"steps": 2},
            "lower_order_final false cannot end at a sigma of zero",
        ),
        (
            "UniPCMultistepScheduler",
            TO_ZERO,
            {"steps": 1},
            "",
        ),
        # What fits the checkpoint and the pipeline.
        (
            "DDIMScheduler",
            None,
            {"only": frozenset({"EulerDiscreteScheduler"})},
            "does not fit this pipeline",
        ),
        ("EulerDiscreteScheduler", None, EULER_ONLY, ""),
        (
            "DDIMScheduler",
            None,
            {"published": "EDMEulerScheduler"},
            "does not fit a checkpoint",
        ),
        ("EDMEulerScheduler", None, {"published": "EDMEulerScheduler", "steps": None}, ""),
        ("EDMEulerScheduler", None, {}, "tells the UNet the time on a scale of its own"),
        # The kinds of values.
        ("DDIMScheduler", {"steps_offset": True}, {}, "steps_offset is true; it must be a whole number"),
        ("DDIMScheduler", {"clip_sample": 1}, {}, "clip_sample is 1; it must be true or false"),
        ("DDIMScheduler", {"steps_offset": None}, {}, ""),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3}, {}, ""),
        ("DPMSolverSinglestepScheduler", {"solver_order": 4}, {}, "it must be a whole number from 1 to 3"),
        ("DPMSolverSinglestepScheduler", {"solver_order": 0}, {}, "it must be a whole number from 1 to 3"),
        ("DDIMScheduler", {"num_train_timesteps": 10}, {}, "what the checkpoint was trained with"),
    ],
)
def test_a_scheduler_is_refused_exactly_where_it_would_fail(
    scheduler: str, options: dict[str, Any] | None, others: dict[str, Any], says: str
) -> None:
    """Bounds include their ends."""
    found = reason(scheduler, options, **others)

    assert says in found
    assert bool(says) == bool(found)


def test_equal_options_have_equal_texts() -> None:
    """Their order, nulls, and how a number is written make no difference: rows then share their calls."""
    texts = {
        options_text({"beta_start": 1, "solver_order": 2}),
        options_text({"solver_order": 2, "beta_start": 1.0, "thresholding": None}),
        options_text(parse_options('{"thresholding": null, "solver_order": 2, "beta_start": 1}')),
    }

    assert texts == {'{"beta_start":1.0,"solver_order":2}'}
    assert options_text({"solver_order": 2}) != options_text({"solver_order": 3})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "a name appears in it twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ("[1]", "it is not a JSON object"),
        ("{", r'it is not a JSON object such as {"use_karras_sigmas": true}'),
    ],
)
def test_options_that_are_no_json_object_are_refused(text: str, says: str) -> None:
    """Python's reader would take some of them."""
    with pytest.raises(ValueError, match=says):
        parse_options(text)


def test_the_settings_of_a_checkpoint_are_those_that_rules_need() -> None:
    """Other entries of its file, and lists, do not count."""
    config = {"_class_name": "X", "num_train_timesteps": 50, "steps_offset": 1, "trained_betas": [1.0]}

    assert scheduler_settings(config) == {"num_train_timesteps": 50, "steps_offset": 1}
