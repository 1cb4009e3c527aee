"""Safe's presets: five numbers by one name, and whose word counts where several are given."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig

from actors.engine.quirks.clip_skip import enable_clip_skip
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from schemas.errors import SpecError
from schemas.spec.spec_file import load_spec
from schemas.systems.parameters import PARAMETERS, SLD_PRESETS
from tests.support.checkpoints import demo
from tests.support.in_process import Record, image_of, job_spec, make, write_rows

LEVELS = 2
"""Of 255: a row's company in a batch may move it this far, no further."""
PUBLISHED = {name.lower(): value for name, value in vars(SafetyConfig).items() if name.isupper()}
NUMBERS = tuple(PUBLISHED["medium"])


def test_the_presets_are_those_of_diffusers() -> None:
    """Every one, under its name in lower case; a spec and a row may have these names and no others."""
    assert SLD_PRESETS == PUBLISHED
    assert PARAMETERS["sld_preset"].choices == tuple(SLD_PRESETS)


ROUTES: dict[str, Record] = {
    "bare": {},
    "named": {"sld_preset": "strong"},
    "mixed": {"sld_preset": "strong", "sld_threshold": 0.5},
    "own": {"sld_threshold": 0.5, "sld_warmup_steps": 3},
}
CASES: list[tuple[str, Record, str, Record]] = [
    ("bare", {}, "medium", {}),
    ("named", {}, "strong", {}),
    ("mixed", {}, "strong", {"sld_threshold": 0.5}),
    ("bare", {"sld_preset": "weak"}, "weak", {}),
    ("named", {"sld_preset": "weak"}, "weak", {}),
    ("mixed", {"sld_preset": "max"}, "max", {}),
    ("own", {"sld_preset": "medium"}, "medium", {}),
    ("mixed", {"sld_warmup_steps": 1}, "strong", {"sld_threshold": 0.5, "sld_warmup_steps": 1}),
    ("own", {"sld_preset": "max", "sld_warmup_steps": 4}, "max", {"sld_warmup_steps": 4}),
    ("named", {"sld_preset": "max", "sld_momentum_scale": 0.0}, "max", {"sld_momentum_scale": 0.0}),
]
"""A route, what a row of it sets, and the preset that its numbers are then those of, but for some."""


def test_a_rows_numbers_beat_its_preset_which_beats_its_routes_numbers_and_preset(tmp_path: Path) -> None:
    """Number by number; the output has what was used, and the preset that was named last."""
    rows = [
        {"row_id": i, "prompt": "a fox", "task": route, **own} for i, (route, own, _, _) in enumerate(CASES)
    ]
    common = {"task": "safe", "model": "sd", "num_inference_steps": 1}
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", rows),
        tmp_path / "out",
        routes={name: common | values for name, values in ROUTES.items()},
        default_route="bare",
    )

    made = make(spec)

    for i, (route, own, preset, but) in enumerate(CASES):
        row = made.row(i)
        assert row["status"] == "ok", row["error_message"]
        assert {name: row[name] for name in NUMBERS} == PUBLISHED[preset] | but, CASES[i]
        assert row["sld_preset"] == own.get("sld_preset", ROUTES[route].get("sld_preset"))


def test_a_preset_draws_what_diffusers_draws_with_it(tmp_path: Path) -> None:
    """Named by the row or by the route, on a plain checkpoint and on a Safe one."""
    rows = [
        {"row_id": "by row", "task": "safe", "model": "sd", "sld_preset": "strong"},
        {"row_id": "by route", "task": "strong", "model": "sd"},
        {"row_id": "safe", "task": "text2img", "model": "safe", "sld_preset": "strong"},
        {"row_id": "none", "task": "safe", "model": "sd"},
    ]
    rows = [row | {"prompt": "a fox", "seed": 7, "num_inference_steps": 12} for row in rows]
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", rows),
        tmp_path / "out",
        models={"sd": {"checkpoint": "demo:sd"}, "safe": {"checkpoint": "demo:safe"}},
        routes={
            "safe": {"model": "sd"},
            "strong": {"task": "safe", "model": "sd", "sld_preset": "strong"},
            "text2img": {"model": "safe"},
        },
        default_route="safe",
    )

    made = make(spec)

    def drawn(kind: str, config: Record) -> np.ndarray:
        pipeline = diffusers.StableDiffusionPipelineSafe.from_pretrained(
            demo(kind), safety_checker=None, use_safetensors=True
        )
        pipeline.set_progress_bar_config(disable=True)
        enable_clip_skip(pipeline.text_encoder)
        generator = torch.Generator("cpu").manual_seed(7)
        picture = pipeline("a fox", num_inference_steps=12, generator=generator, **config).images[0]
        return np.asarray(picture, np.int16)

    def ours(row_id: str) -> np.ndarray:
        return np.asarray(image_of(made.row(row_id)), np.int16)

    strong, medium = (drawn("sd", config) for config in (SafetyConfig.STRONG, SafetyConfig.MEDIUM))
    assert np.abs(strong - medium).mean() > LEVELS
    assert np.abs(ours("by row") - strong).max() <= LEVELS
    assert np.abs(ours("by route") - strong).max() <= LEVELS
    assert np.abs(ours("none") - medium).max() <= LEVELS
    assert np.abs(ours("safe") - drawn("safe", SafetyConfig.STRONG)).max() <= LEVELS


SPEC = """\
version: 1
name: presets
input: {path: rows.parquet}
models: {sd: {checkpoint: "demo:sd"}}
routes:
  safe: {model: sd, sld_preset: strongest}
output: {path: out}
"""


def test_a_routes_unknown_preset_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    """By the file, the line and the key."""
    path = tmp_path / "job.yaml"
    path.write_text(SPEC)

    with pytest.raises(SpecError) as caught:
        load_spec(path)

    wanted = "must be 'weak', 'medium', 'strong' or 'max', not \"strongest\""
    assert str(caught.value) == f"{path}:6: routes.safe.sld_preset: {wanted}"


def test_a_row_with_an_unknown_preset_is_named_at_plan_with_those_there_are(tmp_path: Path) -> None:
    """Its neighbours are made; of a long one no more is shown than helps."""
    presets = {"good": "max", "none": None, "case": "STRONG", "empty": "", "long": "x" * 4_000}
    rows = [{"row_id": name, "prompt": "a fox", "sld_preset": preset} for name, preset in presets.items()]
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", rows),
        tmp_path / "out",
        routes={"safe": {"model": "sd", "num_inference_steps": 1}},
        default_route="safe",
    )

    _, findings = make_plan(make_survey(spec))
    made = make(spec)

    known = "it must be one of weak, medium, strong, max"
    problems = {bad.row_id: (bad.problem.code, bad.problem.message) for bad in findings.bad_rows}
    assert problems == {
        "case": ("invalid_parameter", f"sld_preset is STRONG (did you mean `strong`?); {known}"),
        "empty": ("invalid_parameter", f"sld_preset is ; {known}"),
        "long": ("invalid_parameter", f"sld_preset is {'x' * 100}...; {known}"),
    }
    assert {row["row_id"] for row in made.rows if row["status"] == "ok"} == {"good", "none"}
    assert {
        row["row_id"]: (row["error_code"], row["error_message"]) for row in made.rows if row["error_code"]
    } == (problems)


def test_a_preset_is_safes_alone(tmp_path: Path) -> None:
    """A route of another task cannot have one, and neither can one of text2img whose model is not Safe's."""
    path = write_rows(tmp_path / "in.parquet", [{"prompt": "a fox"}])
    img2img = {"img2img": {"model": "sd", "sld_preset": "weak"}}
    text2img = {"text2img": {"model": "sd", "sld_preset": "weak"}}

    with pytest.raises(
        ValueError, match=r"routes\.img2img\.sld_preset: the task img2img has no such parameter"
    ):
        job_spec(path, tmp_path / "out", routes=img2img, default_route="img2img")
    with pytest.raises(SpecError, match=r"routes\.text2img\.sld_preset: StableDiffusionPipeline has no such"):
        make_survey(job_spec(path, tmp_path / "out", routes=text2img))


def test_a_row_of_another_task_may_have_one(tmp_path: Path) -> None:
    """It is not read, whatever it says, so that one file can hold rows of several tasks."""
    row = {"row_id": 1, "prompt": "a fox", "task": "text2img", "sld_preset": "nonsense"}
    routes = {name: {"model": "sd", "num_inference_steps": 1} for name in ("text2img", "safe")}

    made = make(job_spec(write_rows(tmp_path / "in.parquet", [row]), tmp_path / "out", routes=routes)).row(1)

    assert (made["status"], made["sld_preset"], made["sld_threshold"]) == ("ok", None, None)
