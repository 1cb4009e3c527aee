"""ControlNets in a worker's memory, and in the later steps of chains."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.checkpoints.adapters.control_net_files import CONFIG, net_on_this_machine
from actors.checkpoints.component_files import files_on_hub
from actors.engine.adapters.control_nets import SharedNets
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from actors.storage.output import open_output
from demo.random_control_nets import save_control_net
from jobs.output.job_record import claim, read_record
from jobs.output.resumption import plan_of, survey_of
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import RefusedError, SpecError
from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import ControlNetCard
from tests.support.checkpoints import demo
from tests.support.fake_hub import commit_of, serve_hub
from tests.support.in_process import Made, Record, drawn_image, job_spec, make, plan_for, write_rows

CPU = torch.device("cpu")
NETS = ("canny", "depth", "pose")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("nets")
    return {name: save_control_net(folder / name, demo("sd"), seed=seed) for seed, name in enumerate(NETS)}


def spec_of(folder: Path, folders: dict[str, Path], rows: list[Record], **changes: Any) -> JobSpec:
    path = write_rows(folder / "rows.parquet", rows, {"control_image": IMAGE_TYPE})
    nets = {name: str(net) for name, net in folders.items()}
    models = {name: {"checkpoint": "demo:sd", "controlnets": nets} for name in ("one", "two")}
    routes = {"text2img": {"model": "one", "num_inference_steps": 2}}
    return job_spec(path, folder / "out", **{"models": models, "routes": routes, **changes})


def cards_of(folder: Path, folders: dict[str, Path]) -> tuple[JobSpec, Any]:
    spec = spec_of(folder, folders, [{"prompt": "a fox"}])
    return spec, plan_for(spec).job.controlnets


def test_models_share_a_control_net(folders: dict[str, Path], tmp_path: Path) -> None:
    """By its content, in one precision; it counts once, and is freed with the last model that uses it."""
    spec, cards = cards_of(tmp_path, folders)
    models = ModelCache(spec.models, LoadOptions(device=CPU), 10**10, controlnets=cards)

    one, two = (models.get(name, {"canny"}) for name in ("one", "two"))

    assert one.nets["canny"] is two.nets["canny"]
    assert one.weight_bytes > cards["one"]["canny"].size_bytes
    one.drop_net("canny")
    assert [*one.nets] == []
    assert one.weight_bytes < two.weight_bytes


def test_control_nets_that_are_not_needed_make_room(folders: dict[str, Path], tmp_path: Path) -> None:
    """Other models do so first, and what the rows need stays even beyond the room."""
    spec, cards = cards_of(tmp_path, folders)
    plenty = ModelCache(spec.models, LoadOptions(device=CPU), 10**10, controlnets=cards)
    own = plenty.get("one").weight_bytes
    size_bytes = cards["one"]["canny"].size_bytes
    models = ModelCache(spec.models, LoadOptions(device=CPU), own + int(2.5 * size_bytes), controlnets=cards)

    models.get("two", {"canny"})
    models.get("one", {"canny"})
    models.get("one", {"depth"})
    third = models.get("one", {"pose"})
    after_third = [*third.nets]
    all_three = [*models.get("one", {*NETS}).nets]

    assert models.names == ("one",)
    assert after_third == ["depth", "pose"]
    assert sorted(all_three) == sorted(NETS)


def test_a_control_net_that_cannot_be_loaded_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    """By its name in the spec."""
    card = ControlNetCard(
        path=str(tmp_path / "none"), revision="r", subfolder="", variant=None, sha256="0", size_bytes=1
    )

    with pytest.raises(SpecError, match=r"the ControlNet `canny`: the folder .*none does not exist on "):
        SharedNets(CPU).get("canny", card, torch.float32)


CHAIN = {"task": "text2img", "model": "one", "num_inference_steps": 2, "then": ["again"], "keep_steps": True}
AGAIN = {"task": "img2img", "model": "one", "num_inference_steps": 2, "controlnet": "canny"}


def test_a_later_step_follows_the_rows_control_image(folders: dict[str, Path], tmp_path: Path) -> None:
    """Whatever its size; a row without one is refused by the plan."""
    rows: list[Record] = [
        {"row_id": "small", "task": "chain", "prompt": "a fox", "control_image": drawn_image((32, 48))},
        {"row_id": "none", "task": "chain", "prompt": "a fox", "control_image": None},
    ]
    errors = {"max_rate": 1.0}

    def run(name: str, again: Record) -> Made:
        (tmp_path / name).mkdir()
        routes = {"chain": CHAIN, "again": again}
        batching = {"shard_rows": 1}
        return make(
            spec_of(
                *(tmp_path / name, folders, rows),
                routes=routes,
                default_route="chain",
                errors=errors,
                batching=batching,
            )
        )

    guided, plain = run("guided", AGAIN), run("plain", {**AGAIN, "controlnet": None})

    assert (guided.row("small")["status"], guided.row("none")["error_code"]) == (
        "ok",
        "missing_control_image",
    )
    assert (
        "the ControlNet `canny` of step 2 (img2img) needs `control_image`"
        in guided.row("none")["error_message"]
    )
    assert plain.row("none")["status"] == "ok"
    assert guided.row("small")["step_images"] == plain.row("small")["step_images"]
    assert guided.row("small")["image_sha256"] != plain.row("small")["image_sha256"]


def test_a_later_step_that_no_control_net_can_guide_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Rows do not change what a later step is given."""
    xl = {"canny": str(save_control_net(tmp_path / "xl", demo("sdxl"), seed=1))}
    rows: list[Record] = [{"task": "chain", "prompt": "a fox", "control_image": drawn_image()}]
    models = {"one": {"checkpoint": "demo:sd"}, "xl": {"checkpoint": "demo:sdxl", "controlnets": xl}}
    step = {"task": "img2img", "model": "xl", "controlnet": "canny", "guidance_rescale": 0.5}
    spec = spec_of(
        tmp_path,
        folders,
        rows,
        models=models,
        routes={"chain": CHAIN, "again": step},
        default_route="chain",
        errors={"max_rate": 1.0},
    )

    _, findings = make_plan(make_survey(spec))

    (bad,) = findings.bad_rows
    assert bad.problem.code == "invalid_parameter"
    assert bad.problem.message.startswith("step 2 (img2img): diffusers has no guidance_rescale")


@pytest.mark.parametrize("subfolder", [None, "nets/canny"])
def test_a_control_net_on_the_hub_is_pinned_and_then_downloaded(
    folders: dict[str, Path],
    tmp_path: Path,
    use_hub: Callable[[str], None],
    subfolder: str | None,
) -> None:
    """The plan reads its configuration and the header of its weights; then no network is needed."""
    published = tmp_path / "published"
    shutil.copytree(folders["canny"], published / (subfolder or ""), dirs_exist_ok=True)
    weights = published / (subfolder or "") / "diffusion_pytorch_model.safetensors"
    (published / "diffusion_pytorch_model.bin").touch()
    net = {"path": "some/nets", "subfolder": subfolder}
    models = {"one": {"checkpoint": "demo:sd", "controlnets": {"canny": net}}}
    spec = spec_of(tmp_path, folders, [{"prompt": "a fox"}], models=models)

    with serve_hub({"some/nets": published}) as (address, _):
        use_hub(address)
        card = plan_for(spec).job.controlnets["one"]["canny"]
        folder = net_on_this_machine("canny", card, 5.0)
    use_hub("http://127.0.0.1:1")
    files_on_hub.cache_clear()
    again = plan_for(spec).job.controlnets["one"]["canny"]

    assert (card.path, card.revision) == ("some/nets", commit_of(published))
    assert card.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert sorted(file.name for file in folder.iterdir()) == [CONFIG, weights.name]
    assert again == card


def test_a_job_goes_on_with_the_control_nets_with_which_it_began(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Other weights are refused, and the message names the ControlNet."""
    nets = {"canny": shutil.copytree(folders["canny"], tmp_path / "canny")}
    row = {"prompt": "a fox", "controlnet": "canny", "control_image": drawn_image()}
    spec = spec_of(tmp_path, nets, [row])
    plan, findings = make_plan(make_survey(spec))
    output = open_output(spec.output.path)
    claim(output, plan, findings)
    record = read_record(output)

    again = plan_of(record, survey_of(spec, record), spec.output.path) if record else None

    assert again is not None
    assert again.job.fingerprint == plan.job.fingerprint
    weights = nets["canny"] / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert record is not None
    with pytest.raises(RefusedError, match=r"models.one.controlnets.canny: was "):
        plan_of(record, survey_of(spec, record), spec.output.path)
