"""Samples share a call if they agree in all that a call takes once, and no call is larger than allowed."""

from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine.cohorts import Cohort, cut_into_cohorts

PARAMETERS = {"num_inference_steps": 4, "strength": 0.5, "guidance_scale": 7.5}


def image(width: int, height: int) -> Any:
    return SimpleNamespace(width=width, height=height)


def sample(number: int = 0, **changes: Any) -> Any:
    """An inpainting sample; its texts and its number are its own."""
    model, task = changes.pop("model", "sd"), changes.pop("task", "inpaint")
    parameters = PARAMETERS | changes.pop("parameters", {})
    values: dict[str, Any] = {
        "images": {"image": image(64, 32), "mask_image": image(64, 32)},
        "texts": {"prompt": f"prompt {number}", "negative_prompt": f"not {number}"},
        "passes_latents_on": False,
        "num_windows": 3,
        "weighted": False,
    }
    return SimpleNamespace(
        number=number,
        route=SimpleNamespace(model=model),
        system=SimpleNamespace(task=task),
        parameters=parameters,
        **values | changes,
    )


def numbers(cohorts: list[Cohort]) -> list[list[int]]:
    """The numbers of each cohort's samples."""
    return [[each.number for each in cohort.samples] for cohort in cohorts]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (15, [15]), (16, [16]), (17, [16, 1]), (33, [16, 16, 1]), (65, [16] * 4 + [1])],
)
def test_no_sample_is_lost_or_doubled_where_a_call_is_full(count: int, sizes: list[int]) -> None:
    """They keep their order."""
    cohorts = [*cut_into_cohorts([sample(number) for number in range(count)], 16)]

    assert [len(cohort.samples) for cohort in cohorts] == sizes
    assert [number for group in numbers(cohorts) for number in group] == [*range(count)]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"task": "img2img"},
        {"parameters": {"guidance_scale": 3.0}},
        {"parameters": {"scheduler": "DDIMScheduler"}},
        {"parameters": {"eta": 0.0}},
        {"images": {"image": image(32, 64), "mask_image": image(64, 32)}},
        {"images": {"image": image(64, 64), "mask_image": image(64, 32)}},
        {"images": {"image": image(64, 32), "mask_image": image(32, 32)}},
        {"images": {"image": image(64, 32)}},
        {"texts": {"prompt": "prompt 0"}},
        {"passes_latents_on": True},
        {"num_windows": 2},
        {"weighted": True},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_samples_that_differ_in_what_a_call_takes_once_share_none(changes: dict[str, Any]) -> None:
    """And each call is told what its samples have."""
    samples = [sample(0), sample(1, **changes), sample(2), sample(3, **changes)]

    cohorts = [*cut_into_cohorts(samples, 16)]

    assert sorted(numbers(cohorts)) == [[0, 2], [1, 3]]
    for cohort in cohorts:
        first: Any = cohort.samples[0]
        assert cohort.model == first.route.model
        assert cohort.system is first.system
        assert cohort.parameters == first.parameters
        assert cohort.sizes == {field: (each.width, each.height) for field, each in first.images.items()}
        assert cohort.texts == tuple(first.texts)
        assert cohort.passes_latents_on == first.passes_latents_on
        assert (cohort.num_windows, cohort.weighted) == (first.num_windows, first.weighted)


@pytest.mark.parametrize("alone", [{"padding_mask_crop": 0}, {"negative_original_size": (512, 512)}])
def test_what_diffusers_does_for_one_row_at_a_time_has_a_call_of_its_own(alone: dict[str, Any]) -> None:
    """The others share theirs."""
    samples = [sample(number, parameters=alone if number % 2 else {}) for number in range(6)]

    cohorts = [*cut_into_cohorts(samples, 16)]

    assert sorted(numbers(cohorts)) == [[0, 2, 4], [1], [3], [5]]


def test_images_of_one_size_come_together_and_those_of_most_work_first() -> None:
    """So that batches stay full until the last samples of a size; whatever the order of the rows."""
    work = [(64, 64, 4), (32, 64, 4), (64, 64, 9), (64, 32, 4), (32, 64, 9)]
    samples = [
        sample(number, images={"image": image(width, height)}, parameters={"num_inference_steps": steps})
        for number, (width, height, steps) in enumerate(work)
    ]

    orders = [numbers([*cut_into_cohorts(rows, 16)]) for rows in (samples, samples[::-1])]

    assert orders == [[[3], [4], [1], [2], [0]]] * 2
