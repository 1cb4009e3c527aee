"""Which heights and widths a checkpoint takes follows from its VAE, and from what diffusers asks besides."""

import json
from pathlib import Path

import pytest

from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from tests.support.checkpoints import paper_checkpoint
from tests.support.engines import GreyEngine
from tests.support.in_process import drawn_image, job_spec, make, outcomes_by_id, write_rows


@pytest.mark.parametrize(
    ("num_levels", "fit", "refused"), [(3, 72, 68), (4, 72, 68), (5, 80, 72)], ids=["x4", "x8", "x16"]
)
def test_sizes_are_multiples_of_the_vaes_factor_and_of_eight(
    tmp_path: Path, num_levels: int, fit: int, refused: int
) -> None:
    """A VAE of three levels would do with fours, but its pipeline raises for them."""
    folder = paper_checkpoint(tmp_path / "checkpoint")
    (folder / "vae/config.json").write_text(json.dumps({"block_out_channels": [8] * num_levels}))
    rows = [{"row_id": size, "prompt": "a fox", "width": size, "height": 160} for size in (fit, refused)]
    path = write_rows(tmp_path / "rows.parquet", rows)
    models = {"sd": {"checkpoint": str(folder)}}

    _, findings = make_plan(make_survey(job_spec(path, tmp_path / "out", models=models)))

    assert [(bad.row_id, bad.problem.code) for bad in findings.bad_rows] == [(str(refused), "invalid_size")]


def test_an_input_image_must_be_as_large_as_the_vaes_factor(tmp_path: Path) -> None:
    """Of the row's own model: of two that share a job each looks at its rows' images."""
    models = {name: {"checkpoint": str(tmp_path / name)} for name in ("x8", "x16")}
    for name, num_levels in (("x8", 4), ("x16", 5)):
        folder = paper_checkpoint(tmp_path / name)
        (folder / "vae/config.json").write_text(json.dumps({"block_out_channels": [8] * num_levels}))
    rows = [
        {"row_id": f"{model} {side}", "model": model, "task": "img2img", "prompt": "a fox"}
        | {"image": drawn_image((40, side))}
        for model in models
        for side in (7, 8, 15, 16)
    ]
    path = write_rows(tmp_path / "rows.parquet", rows)
    routes = {"img2img": {"model": "x8"}}

    made = make(
        job_spec(path, tmp_path / "out", models=models, routes=routes, default_route="img2img"), GreyEngine()
    )

    refused = {row_id for row_id, outcome in outcomes_by_id(made).items() if outcome != "ok"}
    assert refused == {"x8 7", "x16 7", "x16 8", "x16 15"}
