"""Facts about jobs whose rows are those of a sweep."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from actors.storage.output import open_output
from jobs.output.job_record import claim, require_record
from jobs.output.resumption import plan_of, survey_of
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from jobs.trial.replay import replay_row
from tests.support.in_process import job_spec, make
from tests.sweeps.test_expand import expanded

SWEEP = """
product:
  prompt: [a red circle, "a small {blue|green} square", a triangle at the left]
  guidance_scale: [2, 3, 5, 7.5]
  seed: {from: 0, count: 5}
set: {num_inference_steps: 1}
"""


@pytest.fixture
def own_threads() -> Iterator[None]:
    """A replay sets the number of torch's threads, which later tests of this process do not expect."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("own_threads")
def test_a_sweep_runs_and_each_image_is_named_by_its_values(tmp_path: Path) -> None:
    """3 x 4 x 5 are 60 images, of which the output has the values of the sweep, kept without being told. The
    job resumes, and a row of it can be replayed."""
    assert expanded(tmp_path, SWEEP).code == 0
    rows = tmp_path / "rows.parquet"
    spec = job_spec(
        rows,
        tmp_path / "out",
        models={"sd": {"checkpoint": "demo:shapes"}},
        routes={"text2img": {"model": "sd"}},
    )
    surveyed = make_survey(spec)
    output = open_output(spec.output.path)
    claim(output, *make_plan(surveyed))

    made = make(spec)

    assert len(made.rows) == 60
    for row in made.rows:
        prompt = row["sweep_prompt"].replace(" ", "-").replace("{", "").replace("}", "").replace("|", "-")
        assert row["row_id"] == f"{prompt}.g{row['sweep_guidance_scale']:g}.seed{row['sweep_seed']}"
        assert (row["status"], row["guidance_scale"]) == ("ok", row["sweep_guidance_scale"])
        assert (row["seed"], row["num_inference_steps"]) == (row["sweep_seed"], 1)
    assert {row["prompt"] for row in made.rows if "{" in row["sweep_prompt"]} == {
        "a small blue square",
        "a small green square",
    }
    record = require_record(output)
    resumed = plan_of(record, survey_of(spec, record), output.path)
    assert [*resumed.shards()] == [*made.plan.shards()]
    printed = io.StringIO()
    replay_row(spec.output.path, made.rows[-1]["row_id"], Console(file=printed, width=200))
    assert "equal: 1 image, byte for byte" in printed.getvalue()
