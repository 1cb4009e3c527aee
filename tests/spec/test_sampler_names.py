"""The names that other tools have for samplers, and what each is read as."""

import json
from typing import Any

import pytest

from schemas.systems.sampler_names import ENDINGS, NAMES, read_sampler, reading, settled, unknown_scheduler
from schemas.systems.schedulers import MISFITS, SCHEDULERS

KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"


def stands_for(name: str) -> tuple[str, dict[str, Any]] | None:
    sampler = read_sampler(name)
    return sampler and (sampler.scheduler, dict(sampler.options))


@pytest.mark.parametrize(
    ("names", "scheduler", "options"),
    [
        # AUTOMATIC1111's names as diffusers' documentation has them, then its short ones, then other tools'.
        (("DPM++ 2M", "k_dpmpp_2m", "dpmpp_2m"), MULTISTEP, {}),
        (("DPM++ 2M Karras", "k_dpmpp_2m_ka", "dpmpp_2m_k", "dpmpp_2m karras"), MULTISTEP, KARRAS),
        (("DPM++ 2M SDE", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu"), MULTISTEP, SDE),
        (("DPM++ 2M SDE Karras", "k_dpmpp_2m_sde_ka", "dpmpp_2m_sde_k"), MULTISTEP, SDE | KARRAS),
        (("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun"), MULTISTEP, SDE | {"solver_type": "heun"}),
        (("DPM++ 3M SDE", "dpmpp_3m_sde"), MULTISTEP, SDE | {"solver_order": 3}),
        (("DPM++ 2S a", "k_dpmpp_2s_a", "dpmpp_2s_ancestral", "dpmpp_2s"), SINGLESTEP, {}),
        (("DPM++ 2S a Karras", "k_dpmpp_2s_a_ka", "dpmpp_2s_k"), SINGLESTEP, KARRAS),
        (("DPM++ SDE", "k_dpmpp_sde", "dpmpp_sde_gpu"), SINGLESTEP, {}),
        (("DPM++ SDE Karras", "k_dpmpp_sde_ka", "dpmpp_sde_k"), SINGLESTEP, KARRAS),
        (("DPM2", "k_dpm_2", "dpm_2", "kdpm_2"), "KDPM2DiscreteScheduler", {}),
        (("DPM2 Karras", "k_dpm_2_ka", "kdpm_2_k"), "KDPM2DiscreteScheduler", KARRAS),
        (("DPM2 a", "k_dpm_2_a", "dpm_2_ancestral", "kdpm_2_a"), "KDPM2AncestralDiscreteScheduler", {}),
        (("DPM2 a Karras", "k_dpm_2_a_ka", "kdpm_2_a_k"), "KDPM2AncestralDiscreteScheduler", KARRAS),
        (("Euler", "k_euler", "K_EULER", "EulerDiscrete"), "EulerDiscreteScheduler", {}),
        (("euler_k", "Euler Karras"), "EulerDiscreteScheduler", KARRAS),
        (
            ("Euler a", "k_euler_a", "K_EULER_ANCESTRAL", "euler_ancestral"),
            "EulerAncestralDiscreteScheduler",
            {},
        ),
        (("Heun", "k_heun", "HeunDiscrete"), "HeunDiscreteScheduler", {}),
        (("LMS", "k_lms", "KLMS"), "LMSDiscreteScheduler", {}),
        (("LMS Karras", "k_lms_ka", "lms_k"), "LMSDiscreteScheduler", KARRAS),
        (("DDIM", "ddim", "ddimscheduler"), "DDIMScheduler", {}),
        (("PLMS", "plms"), "PNDMScheduler", {"skip_prk_steps": True}),
        (("UniPC", "uni_pc"), "UniPCMultistepScheduler", {}),
        (("deis",), "DEISMultistepScheduler", {}),
        (("LCM",), "LCMScheduler", {}),
        (("DPMSolverMultistep", "dpmsolvermultistepscheduler"), MULTISTEP, {}),
        (("KarrasDPM",), MULTISTEP, KARRAS),
        (("euler sgm_uniform", "Euler Simple"), "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        (("euler normal", "Euler Automatic"), "EulerDiscreteScheduler", {}),
        (
            ("DPM++ 2M Exponential",),
            MULTISTEP,
            {"timestep_spacing": "linspace", "use_exponential_sigmas": True},
        ),
        # It has no timestep_spacing: its times are always placed linearly.
        (("DPM++ SDE Exponential",), SINGLESTEP, {"use_exponential_sigmas": True}),
    ],
)
def test_a_samplers_name_stands_for_a_class_and_options(
    names: tuple[str, ...], scheduler: str, options: dict[str, Any]
) -> None:
    """However the tool writes it."""
    assert [stands_for(name) for name in names] == [(scheduler, options)] * len(names)


@pytest.mark.parametrize("scheduler", [*SCHEDULERS, *MISFITS])
def test_a_class_is_itself_and_may_be_written_without_its_ending(scheduler: str) -> None:
    """A class that rows cannot have is known too, so that its row is told why."""
    assert stands_for(scheduler) == (scheduler, {})
    assert reading(scheduler) is None
    for name in (scheduler.removesuffix("Scheduler"), scheduler.lower()):
        assert stands_for(name) == (scheduler, {})
        assert reading(name) == f"`{name}` is read as {scheduler}"


def test_no_name_of_the_table_hides_another() -> None:
    """Each name, as it stands in the table, has the table's own reading."""
    for names, sampler in NAMES.items():
        assert [read_sampler(name) for name in names] == [sampler] * len(names)
        assert sampler.options.keys() <= SCHEDULERS[sampler.scheduler].keys()
    assert all(unknown_scheduler(ending) for endings in ENDINGS for ending in endings)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "Eulr a",
            "`Eulr a` is not a scheduler for Stable Diffusion (did you mean `Euler a`?); schedulers are",
        ),
        ("DPM++ 2M Karas", "(did you mean `DPM++ 2M Karras`?)"),
        ("DPM adaptive", ": diffusers 0.42.1 does not have this sampler; schedulers are DDIM"),
        ("Heun++", "does not have this sampler"),
        ("karras", ", but says how noise levels are placed; name both, as in `DPM++ 2M Karras`"),
        ("Euler a Karras", ": EulerAncestralDiscreteScheduler cannot place its noise levels so"),
        ("dpmpp_sde_sgm_uniform", ": DPMSolverSinglestepScheduler cannot place its noise levels so"),
        ("lcm_karras", ": LCMScheduler cannot place its noise levels so"),
        ("", "`` is not a scheduler"),
        ("k", "`k` is not a scheduler"),
        ("x" * 10_000, "..."),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_or_the_reason(name: str, says: str) -> None:
    """Nothing is read as what it may not be."""
    assert read_sampler(name) is None
    assert says in str(unknown_scheduler(name))
    assert settled(name, None) == (name, None)


@pytest.mark.parametrize(
    ("name", "options", "name_wins", "expected"),
    [
        ("Euler", None, False, None),
        ("Euler Karras", None, False, KARRAS),
        ("Euler Karras", {}, False, KARRAS),
        ("Euler Karras", {"use_karras_sigmas": False}, False, {"use_karras_sigmas": False}),
        ("Euler Karras", {"use_karras_sigmas": False}, True, KARRAS),
        ("Euler Karras", {"use_karras_sigmas": None}, False, KARRAS),
        ("Euler Karras", {"steps_offset": 1}, True, {"steps_offset": 1} | KARRAS),
    ],
)
def test_options_that_are_set_win_over_those_of_the_name(
    name: str, options: dict[str, Any] | None, name_wins: bool, expected: dict[str, Any] | None
) -> None:
    """They are merged option by option; a row's own name wins over the options of its route."""
    text = None if options is None else json.dumps(options)

    scheduler, merged = settled(name, text, name_wins=name_wins)

    assert scheduler == "EulerDiscreteScheduler"
    assert (merged and json.loads(merged)) == expected
