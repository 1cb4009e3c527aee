"""How long images of each kind took, as a worker tells it."""

import math
from pathlib import Path
from typing import Any

import pytest

from actors.rows.denoising import STEP_PARAMETERS, num_steps
from actors.speeds import two_digits
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from tests.support.in_process import job_spec, make, write_rows


def test_a_shard_shares_the_seconds_of_its_device_by_pixels_and_steps(tmp_path: Path) -> None:
    """A step with guidance counts twice; images that start at an earlier image run a part of their steps."""
    small = {"prompt": "p", "width": 64, "height": 64}
    rows: list[dict[str, Any]] = [
        {**small, "row_id": "a", "num_inference_steps": 3, "guidance_scale": 1.0},
        {**small, "row_id": "b", "num_inference_steps": 5, "num_images_per_prompt": 2, "guidance_scale": 4.0},
        {"row_id": "c", "prompt": "p", "width": 128, "height": 64, "num_inference_steps": 2},
    ]
    spec = job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out")

    (report,) = make(spec).reports

    small_ones, large_one = report.speeds
    assert (small_ones.pixels, small_ones.images, small_ones.image_steps) == (4100, 3, 13)
    assert (small_ones.passes, large_one.passes) == (23, 4)
    assert (large_one.pixels, large_one.images, large_one.image_steps) == (8200, 1, 2)
    assert large_one.step_seconds / small_ones.step_seconds == pytest.approx(4 * 8200 / (23 * 4100))
    assert large_one.image_seconds / small_ones.image_seconds == pytest.approx(8200 / (3 * 4100))
    assert report.load_seconds["sd"] > 0
    of_shard = small_ones.seconds + large_one.seconds + report.load_seconds["sd"]
    assert small_ones.image_seconds > 0
    assert of_shard <= report.seconds["generate"] + 0.01


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"num_inference_steps": 20}, 20),
        ({"num_inference_steps": 20, "strength": 0.3}, 6),
        ({"num_inference_steps": 10, "strength": 0.05}, 1),
        ({"num_inference_steps": 50, "denoising_end": 0.8}, 40),
        # With a share that is done already, diffusers does not read the strength.
        ({"num_inference_steps": 50, "denoising_start": 0.8, "strength": 0.3}, 10),
        ({}, 1),
    ],
)
def test_the_steps_that_run_follow_from_the_parameters(values: dict[str, float], steps: int) -> None:
    """As diffusers cuts off the share of the steps."""
    assert num_steps(dict.fromkeys(STEP_PARAMETERS, math.nan) | values) == steps


def test_the_plan_counts_what_the_workers_will_report(tmp_path: Path) -> None:
    """By row, recipe and route, for each step of a chain; the worker tells the same numbers afterwards."""
    rows: list[dict[str, Any]] = [
        {"row_id": "a", "prompt": "p", "num_inference_steps": 3, "guidance_scale": 1.0},
        {"row_id": "b", "prompt": "p", "recipe": "lcm", "num_images_per_prompt": 2},
        {"row_id": "c", "prompt": "p", "task": "twice", "num_inference_steps": 2},
    ]
    routes = {
        "text2img": {"model": "sd", "num_inference_steps": 5, "height": 64, "width": 64},
        "twice": {
            "task": "text2img",
            "model": "sd",
            "height": 64,
            "width": 64,
            "guidance_scale": 3.0,
            "then": ["again"],
        },
        "again": {"task": "img2img", "model": "sd", "num_inference_steps": 4, "strength": 0.5},
    }
    path = write_rows(tmp_path / "in.parquet", rows)
    spec = job_spec(path, tmp_path / "out", routes=routes)

    _, findings = make_plan(make_survey(spec))
    (report,) = make(spec).reports

    works = [(count.route, each) for count in findings.counts for each in count.work]
    assert [(route, work.task, work.image_steps, work.guided_steps) for route, work in works] == [
        # A row with 3 steps, and two images with the recipe's 4, which has no guidance.
        ("text2img", "text2img", 11, 0),
        ("twice", "text2img", 2, 2),
        ("twice", "img2img", 2, 2),
    ]
    reported = {each.task: (each.images, each.image_steps, each.guided_steps) for each in report.speeds}
    assert reported == {"text2img": (4, 13, 2), "img2img": (1, 2, 2)}


def test_pixels_have_two_significant_digits() -> None:
    """So that images of any size fall into few kinds."""
    assert [two_digits(n) for n in (0, 7, 64 * 64, 512 * 512, 1024 * 1024)] == [
        0,
        7,
        4100,
        260_000,
        1_000_000,
    ]
