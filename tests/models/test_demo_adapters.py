"""Adapters that come with darkroom as `demo:KIND`, and those of random weights that `demo-model` builds."""

import subprocess
from pathlib import Path

import pytest

import models
from actors.checkpoints.adapters.adapter_files import find_adapter, on_this_machine
from actors.checkpoints.adapters.control_net_files import find_control_nets, net_on_this_machine
from actors.checkpoints.adapters.lora_check import find_loras
from actors.checkpoints.model_cards import read_card
from actors.storage.stores import Stores
from demo.random_adapters import BUILDERS, main
from models import demo_adapters
from models.demo_adapters import build
from schemas.errors import SpecError
from schemas.spec.adapter_spec import AdapterSpec
from schemas.spec.job_spec import ModelSpec
from tests.support.checkpoints import sdxl_checkpoint

TRAINED = Path(models.__file__).parent
DEADLINE_S = 1.0


@pytest.fixture(scope="module")
def stores() -> Stores:
    return Stores(DEADLINE_S)


def test_a_lora_of_the_demo_keeps_its_name_for_the_workers(stores: Stores) -> None:
    """Ray puts the package into another folder of each machine, and each has the file."""
    model = ModelSpec.model_validate({"checkpoint": "demo:shapes", "loras": {"dark": "demo:night"}})

    loras, notes = find_loras("sd", model, read_card("sd", model), stores)

    file = loras["dark"]
    assert (file.path, file.weight_name, notes) == ("demo:night", None, [])
    assert on_this_machine(file, DEADLINE_S).parent == TRAINED / "shapes-night"


def test_a_control_net_of_the_demo_keeps_its_name_for_the_workers() -> None:
    """As a LoRA does."""
    model = ModelSpec.model_validate({"checkpoint": "demo:shapes", "controlnets": {"lines": "demo:outline"}})

    card = find_control_nets("sd", model, read_card("sd", model))["lines"]

    assert card.path == "demo:outline"
    assert net_on_this_machine("lines", card, DEADLINE_S) == TRAINED / "shapes-outline"


@pytest.mark.parametrize("name", ["sd", "shapes", "nights"])
def test_what_is_no_adapter_of_the_demo_is_refused_with_those_that_are(name: str, stores: Stores) -> None:
    """Also a checkpoint of the demo; the message begins with the entry of the spec."""
    spec = AdapterSpec(path=f"demo:{name}")
    nets = ModelSpec.model_validate({"checkpoint": "demo:shapes", "controlnets": {"lines": spec.path}})
    problem = f"unknown kind of demo adapter '{name}'; choose one of night, outline"

    with pytest.raises(SpecError, match=f"^models.sd.loras.dark: {problem}$"):
        find_adapter("models.sd.loras.dark", "dark", spec, stores)
    with pytest.raises(SpecError, match=f"^models.sd.controlnets.lines: {problem}$"):
        find_control_nets("sd", nets, read_card("sd", nets))


def test_the_adapters_of_the_demo_are_small() -> None:
    """Both come with the package and with every Ray job."""
    files = [path for kind in ("shapes-night", "shapes-outline") for path in (TRAINED / kind).rglob("*.*")]

    assert sum(path.stat().st_size for path in files) < 1_500_000


def test_random_adapters_fit_the_checkpoint_that_they_are_built_for(tmp_path: Path, stores: Stores) -> None:
    """Each kind that `demo-model` offers has a builder, and what it saves passes the plan's checks."""
    folders = {kind: tmp_path / kind for kind in demo_adapters.RANDOM_KINDS}

    codes = {kind: main(kind, str(sdxl_checkpoint()), str(folders[kind]), "0") for kind in folders}

    model = ModelSpec.model_validate(
        {
            "checkpoint": "demo:sdxl",
            "loras": {"random": str(folders["lora"])},
            "controlnets": {"random": str(folders["controlnet"])},
        }
    )
    card = read_card("sdxl", model)
    assert codes == dict.fromkeys(BUILDERS, 0)
    assert find_loras("sdxl", model, card, stores)[1] == []
    assert find_control_nets("sdxl", model, card).keys() == {"random"}


def test_an_adapter_is_not_built_over_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started for it; a trained one is a copy of the package's."""
    monkeypatch.setattr(subprocess, "run", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()

    build(tmp_path / "new", "outline", "demo:sd", seed=0)
    for kind in demo_adapters.KINDS:
        with pytest.raises(SpecError, match="already exists; choose a new folder"):
            build(tmp_path / "full", kind, "demo:sd", seed=0)

    copied = {path.name for path in (tmp_path / "new").iterdir()}
    assert copied == {path.name for path in (TRAINED / "shapes-outline").iterdir()}


def test_an_adapter_for_what_is_no_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a process is started that would look for it on the Hub."""
    monkeypatch.setattr(subprocess, "run", None)

    with pytest.raises(SpecError, match=f"^{tmp_path} is not a checkpoint; name a folder that has one, or"):
        build(tmp_path / "lora", "lora", str(tmp_path), seed=0)
