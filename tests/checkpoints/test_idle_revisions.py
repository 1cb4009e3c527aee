"""Only what is on the Hub has revisions."""

from pathlib import Path
from typing import Any

import pytest

from actors.checkpoints.idle_revisions import refuse_idle_revisions
from jobs.survey.survey import make_survey
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec
from tests.support.in_process import job_spec, write_rows


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ({"checkpoint": "demo:sd"}, "models.m"),
        ({"checkpoint": "/folders/sd"}, "models.m"),
        ({"checkpoint": "./sd.safetensors"}, "models.m"),
        ({"checkpoint": "s3://bucket/sd.safetensors"}, "models.m"),
        ({"components": {"vae": {"path": "~/vae"}}}, "models.m.components.vae"),
        ({"loras": {"chalk": {"path": "s3://bucket/loras", "weight_name": "x"}}}, "models.m.loras.chalk"),
        ({"loras": {"chalk": {"path": "file:///chalk.safetensors"}}}, "models.m.loras.chalk"),
        ({"controlnets": {"canny": {"path": "own/canny"}}}, "models.m.controlnets.canny"),
    ],
)
def test_a_revision_of_something_that_is_not_on_the_hub_is_refused(
    model: dict[str, Any], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its key; it would be passed over. A path from here is one if there is something."""
    (tmp_path / "own" / "canny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    entry = next(iter(next(iter(model.values())).values())) if "checkpoint" not in model else model
    entry["revision"] = "main"

    with pytest.raises(SpecError) as raised:
        refuse_idle_revisions("m", ModelSpec.model_validate({"checkpoint": "studio/sd", **model}))

    assert str(raised.value).startswith(f"{key}.revision: ")
    assert "leave `revision` out" in str(raised.value)


def test_a_revision_of_a_repository_is_not_judged() -> None:
    """Of a whole repository, or of a file of it."""
    of_hub = {"path": "studio/x", "revision": "main"}
    model = {
        "checkpoint": "studio/sd/sd.safetensors",
        "revision": "v1",
        **{section: {"one": of_hub} for section in ("components", "loras", "controlnets")},
    }

    refuse_idle_revisions("m", ModelSpec.model_validate(model))


def test_the_plan_refuses_such_a_revision(tmp_path: Path) -> None:
    """Before anything is read."""
    rows = write_rows(tmp_path / "rows.parquet", [{"prompt": "a fox"}])
    spec = job_spec(rows, tmp_path / "out", models={"sd": {"checkpoint": "demo:sd", "revision": "main"}})

    with pytest.raises(SpecError, match=r"^models\.sd\.revision: demo:sd is not a repository"):
        make_survey(spec)
