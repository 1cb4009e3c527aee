"""Adapters in a spec: how they are named, and which weights a route may give them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.columns.input_columns import ColumnMap
from schemas.errors import SpecError
from schemas.job import Job
from schemas.spec.adapter_spec import AdapterSpec
from schemas.spec.job_spec import JobSpec
from schemas.spec.spec_file import load_spec
from schemas.systems.model_card import AdapterFile
from tests.support.checkpoints import model_card

SPEC: dict[str, Any] = {
    "version": 1,
    "name": "styles",
    "input": {"path": "rows"},
    "models": {
        "sd": {
            "checkpoint": "a/b",
            "loras": {
                "chalk": {"path": "org/repo", "weight_name": "chalk.safetensors", "revision": "v1"},
                "ink": "s3://bucket/ink.safetensors",
            },
        },
        "plain": {"checkpoint": "a/b"},
    },
    "routes": {"text2img": {"model": "sd", "loras": {"chalk": 0.8, "ink": 0}}},
    "output": {"path": "out"},
}


def loaded(folder: Path, *overrides: str) -> JobSpec:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return load_spec(path, overrides)


def test_a_lora_is_a_path_or_a_mapping(tmp_path: Path) -> None:
    """A text is the path alone. A route's weights are in a form in which equal ones are equal texts."""
    spec = loaded(tmp_path)

    assert spec.models["sd"].loras == {
        "chalk": AdapterSpec(path="org/repo", weight_name="chalk.safetensors", revision="v1"),
        "ink": AdapterSpec(path="s3://bucket/ink.safetensors"),
    }
    assert spec.routes["text2img"].set_parameters() == {"loras": '{"chalk":0.8}'}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("routes.text2img.loras={chak: 1}", "model `sd` has no LoRA `chak` (did you mean `chalk`?)"),
        ("routes.text2img.loras={zzz: 0}", "model `sd` has no LoRA `zzz`; it has chalk, ink"),
        ("routes.text2img.model=plain", "has no LoRA `chalk` and no others. Name its file in models.plain"),
        ("routes.text2img.loras={chalk: 10.5}", "`chalk` is 10.5; it must be a number from -10 to 10"),
        ("routes.text2img.loras={chalk: true}", "must be a number, not true"),
        ("routes.text2img.loras={chalk: .inf}", "must be a"),
        ("routes.text2img.loras=[chalk]", "must be a mapping of names to values"),
        ("routes.text2img.task=safe", "the task safe has no such parameter"),
        ("models.sd.loras.chalk=3", "must be a mapping, such as {path: ...}, not 3"),
        ("models.sd.components.vae=3", "must be a mapping, such as {path: ...}, not 3"),
        ("models.sd.components.vae={pth: x}", "unknown key (did you mean `path`?)"),
        ("models.sd.loras.chalk={weight_nam: x}", "unknown key (did you mean `weight_name`?)"),
        ("models.sd.loras.chalk={revision: x}", "path: is missing"),
        ("models.sd.loras.chalk=https://user:secret@hub/x", "not an address"),
        ("models.sd.loras.chalk={path: a/b, subfolder: x/../y}", "`x/../y` is not the name of a file or"),
        ("models.sd.loras.chalk={path: a/b, weight_name: /etc/x}", "`/etc/x` is not the name of a file or"),
        ('models.sd.loras.chalk="a\\u202eb"', "a terminal obeys"),
        ("batching.compile=true", "batching.compile: model `sd` has LoRAs"),
        ("kernels.fuse_qkv=true", "kernels.fuse_qkv: model `sd` has LoRAs"),
    ],
)
def test_what_is_wrong_with_a_lora_is_said_with_its_key(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(SpecError) as error:
        loaded(tmp_path, override)

    assert says in str(error.value)


def test_a_route_has_at_most_sixteen_loras(tmp_path: Path) -> None:
    """Those of weight 0 do not count."""
    names = [f"l{number}" for number in range(17)]
    declared = f"models.sd.loras={json.dumps(dict.fromkeys(names, 'a/b'))}"

    most = loaded(
        tmp_path, declared, f"routes.text2img.loras={json.dumps(dict.fromkeys(names, 1) | {'l9': 0})}"
    )
    assert len(json.loads(str(most.routes["text2img"].set_parameters()["loras"]))) == 16
    with pytest.raises(SpecError, match="it has 17 of them; a row can have at most 16"):
        loaded(tmp_path, declared, f"routes.text2img.loras={json.dumps(dict.fromkeys(names, 1))}")


def job(**file: Any) -> Job:
    """A job whose LoRA `chalk` is this file."""
    of_plan = {"name": "chalk", "path": "org/repo", "weight_name": "x.safetensors", "revision": "c" * 40}
    chalk = AdapterFile(**(of_plan | {"sha256": "5" * 64, "size_bytes": 9} | file))
    return Job(
        spec=JobSpec.model_validate(SPEC),
        models={"sd": model_card(loras={"chalk": chalk}), "plain": model_card()},
        columns=ColumnMap(fields={}, recognised={}, keep={}, id_type=None),
        schema=b"",
    )


def test_a_changed_lora_makes_another_job() -> None:
    """Not one that lies elsewhere with the same content."""
    assert job(sha256="6" * 64).fingerprint != job().fingerprint
    assert job(path="/chalk.safetensors", weight_name=None, revision=None).fingerprint == job().fingerprint


def test_workers_load_the_loras_that_the_driver_found() -> None:
    """At the commit that the plan has read."""
    assert job().checkpoints["sd"].loras == {
        "chalk": AdapterSpec(path="org/repo", weight_name="x.safetensors", revision="c" * 40)
    }
    assert job().checkpoints["plain"].loras == {}


def test_a_job_without_loras_has_the_identity_that_it_always_had() -> None:
    """Jobs that earlier versions began go on."""
    sections = SPEC | {
        "models": {"sd": {"checkpoint": "a/b"}},
        "routes": {"text2img": {"model": "sd"}},
    }
    plain = replace(job(), spec=JobSpec.model_validate(sections), models={"sd": model_card()})

    assert "lora" not in json.dumps(plain.identity())
