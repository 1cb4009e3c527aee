"""Which heights and widths a checkpoint takes follows from its VAE, and from what diffusers asks besides."""

import json
from pathlib import Path

import pytest

from jobs.planning.plan import make_plan
from jobs.planning.survey import make_survey
from tests.support.checkpoints import paper_checkpoint
from tests.support.in_process import job_spec, write_rows


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
