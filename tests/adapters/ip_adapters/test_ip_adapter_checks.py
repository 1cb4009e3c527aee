"""What the plan says of IP-Adapters that cannot be used, and of rows that they cannot show a picture."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console
from safetensors.numpy import load_file, save_file

from actors.checkpoints.adapters.ip_adapter_files import find_ip_adapters
from actors.checkpoints.component_files import files_on_hub
from actors.checkpoints.model_cards import read_card
from actors.engine.pipelines.prepared_folders import encoder_folder
from actors.storage.output import open_output
from actors.storage.stores import Stores
from demo.random_ip_adapters import save_image_encoder, save_ip_adapter
from jobs.output.job_record import claim, read_record
from jobs.output.resumption import plan_of, survey_of
from jobs.planning.plan import make_plan
from jobs.planning.plan_text import print_plan
from jobs.survey.survey import make_survey
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import RefusedError, SpecError
from schemas.spec.job_spec import JobSpec, ModelSpec
from schemas.systems.model_card import IpAdapterCard
from tests.support.checkpoints import demo
from tests.support.fake_hub import commit_of, serve_hub
from tests.support.in_process import Record, drawn_image, job_spec, write_rows

ENCODER = "models/image_encoder"
PICTURE = drawn_image()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of IP-Adapters for the small Stable Diffusion."""
    folder = tmp_path_factory.mktemp("published")
    save_image_encoder(folder / ENCODER, seed=1)
    for seed, form in enumerate(("plain", "plus", "full-face")):
        save_ip_adapter(folder / f"models/{form}.safetensors", demo("sd"), seed=seed, form=form)  # type: ignore[arg-type]
    return folder


def card_of(entry: Record | str, kind: str = "sd") -> IpAdapterCard:
    model = ModelSpec.model_validate({"checkpoint": f"demo:{kind}", "ip_adapters": {"face": entry}})
    return find_ip_adapters("m", model, read_card("m", model), Stores())["face"]


def refusal(entry: Record | str, kind: str = "sd") -> str:
    with pytest.raises(SpecError) as error:
        card_of(entry, kind)
    assert str(error.value).startswith("models.m.ip_adapters")
    return str(error.value)


def changed(file: Path, folder: Path, **tensors: tuple[int, ...] | None) -> str:
    """A copy of the file in which tensors of image_proj have other shapes, or are missing (None)."""
    weights = load_file(file)
    for name, shape in tensors.items():
        weights.pop(f"image_proj.{name}", None)
        if shape is not None:
            weights[f"image_proj.{name}"] = np.zeros(shape, np.float32)
    shutil.copytree(file.parent / "image_encoder", folder / "image_encoder")
    save_file(weights, folder / "changed.safetensors")
    return str(folder / "changed.safetensors")


@pytest.mark.parametrize("form", ["plain", "plus", "full-face"])
def test_each_form_that_diffusers_knows_is_found_with_its_image_encoder(published: Path, form: str) -> None:
    """The encoder is beside the file, as in published repositories."""
    file = published / f"models/{form}.safetensors"

    card = card_of(str(file))

    assert card.file.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert card.image_encoder.path == str(published / ENCODER)
    assert {"config.json", "model.safetensors"} <= card.image_encoder.files.keys()


def test_an_image_encoder_may_be_elsewhere(published: Path, tmp_path: Path) -> None:
    """A path of several folders begins at the adapter's folder, as in diffusers."""
    file = shutil.copy(published / "models/plain.safetensors", tmp_path / "face.safetensors")
    below = {"path": str(published), "subfolder": "models", "weight_name": "plain.safetensors"}
    places: list[Any] = [str(published / ENCODER), {"path": str(published / ENCODER), "subfolder": ""}]

    cards = [card_of({"path": str(file), "image_encoder": place}) for place in places]
    cards.append(card_of(below | {"image_encoder": ENCODER}))

    assert {card.image_encoder.revision for card in cards} == {
        card_of(str(published / "models/plain.safetensors")).image_encoder.revision
    }
    assert f"image_encoder: the folder {tmp_path}/image_encoder does not exist" in refusal(str(file))


def test_an_adapter_of_another_kind_is_refused(published: Path, tmp_path: Path) -> None:
    plain, plus = (published / f"models/{name}.safetensors" for name in ("plain", "plus"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(plain.read_bytes()[:-8])
    (tmp_path / "face.bin").touch()
    number = iter(range(100))

    def with_tensors(file: Path, **tensors: tuple[int, ...] | None) -> str:
        folder = tmp_path / str(next(number))
        folder.mkdir()
        return refusal(changed(file, folder, **tensors))

    assert "it was made for another kind of checkpoint: its layer 1 is (32, 32)" in refusal(
        str(plain), "sdxl"
    )
    assert "diffusers has no pipeline with IP-Adapters for a checkpoint of" in refusal(
        str(plain), "depth2img"
    )
    assert "face.bin is a pickle" in refusal(str(tmp_path / "face.bin"))
    assert "cut off or damaged; download it again" in refusal(str(cut))
    none: dict[str, Any] = {"proj.weight": None, "proj.bias": None}
    assert "choose one that shows faces from pictures" in with_tensors(
        plain, **none, **{"proj.0.weight": (32, 512)}
    )
    assert "image_proj.norm.bias is missing" in with_tensors(plain, **{"norm.bias": None})
    assert "image_proj.proj.bias has the shape (3,), not (128,)" in with_tensors(plain, **{"proj.bias": (3,)})
    assert "image_proj.layers.3.1.3.weight is missing" in with_tensors(plus, **{"layers.3.1.3.weight": None})
    assert "a tensor that diffusers does not read" in with_tensors(plus, **{"layers.4.1.3.weight": (64, 256)})
    assert "none of the projections" in with_tensors(plus, latents=None)


def test_an_image_encoder_that_does_not_fit_is_refused(published: Path, tmp_path: Path) -> None:
    """By its configuration, before anything is loaded."""

    def with_config(name: str, form: str, **config: Any) -> str:
        folder = shutil.copytree(published / "models", tmp_path / name)
        file = folder / "image_encoder/config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return refusal(str(folder / f"{form}.safetensors"))

    assert "its projection_dim is 64, and the adapter reads 32" in with_config(
        "a", "plain", projection_dim=64
    )
    assert "its hidden_size is 64, and the adapter reads 32" in with_config("b", "plus", hidden_size=64)
    assert "is a CLIPTextModel, not a CLIPVision" in with_config("c", "plus", architectures=["CLIPTextModel"])
    pickled = shutil.copytree(published / "models", tmp_path / "d")
    (pickled / "image_encoder/model.safetensors").rename(pickled / "image_encoder/pytorch_model.bin")
    assert "has no model.safetensors" in refusal(str(pickled / "plus.safetensors"))


def spec_of(folder: Path, published: Path, rows: list[Record], **changes: Any) -> JobSpec:
    path = write_rows(folder / "rows.parquet", rows, {"ip_adapter_image": IMAGE_TYPE})
    adapters = {"face": str(published / "models/plain.safetensors")}
    models = {"sd": {"checkpoint": "demo:sd", "ip_adapters": adapters}, "bare": {"checkpoint": "demo:sd"}}
    later = {"task": "img2img", "model": "sd", "ip_adapter": "face"}
    routes = {
        "text2img": {"model": "sd"},
        "chain": {"task": "text2img", "model": "bare", "then": ["later"]},
        "later": later,
    }
    rate = {"max_rate": 1.0}
    return job_spec(path, folder / "out", **{"models": models, "routes": routes, "errors": rate} | changes)


def test_rows_that_no_picture_can_be_shown_are_refused_by_the_plan(published: Path, tmp_path: Path) -> None:
    """The others are counted by adapter, and pictures that nothing shows are told of."""
    cases: list[tuple[Record, str]] = [
        ({"ip_adapter": "fase"}, "unknown_ip_adapter: model `sd` has no IP-Adapter `fase` (did you mean"),
        ({"ip_adapter": "/etc/face"}, "unknown_ip_adapter: model `sd` has no IP-Adapter `/etc/face`"),
        ({"ip_adapter": "face", "model": "bare"}, "unknown_ip_adapter: model `bare` has no IP-Adapter"),
        ({"ip_adapter": "face", "ip_adapter_image": None}, "missing_ip_adapter_image: the IP-Adapter needs"),
        ({"ip_adapter": "face", "ip_adapter_scale": -1.0}, "invalid_parameter: ip_adapter_scale is -1.0"),
        (
            {"task": "chain", "ip_adapter_image": None},
            "missing_ip_adapter_image: step 2 (img2img): the IP-Adapt",
        ),
        ({"ip_adapter": "face", "ip_adapter_scale": 0.0, "ip_adapter_image": None}, ""),
        ({"task": "chain"}, ""),
        ({"ip_adapter": "face"}, ""),
        ({"ip_adapter": ""}, ""),
        ({"model": "bare"}, ""),
    ]
    common = {
        "task": "text2img",
        "model": "sd",
        "prompt": "a fox",
        "ip_adapter": None,
        "ip_adapter_scale": None,
    }
    rows = [
        {**common, "model": None if "task" in row else "sd", "ip_adapter_image": PICTURE, **row}
        for row, _ in cases
    ]

    plan, findings = make_plan(make_survey(spec_of(tmp_path, published, rows)))

    problems = {bad.row: str(bad.problem) for bad in findings.bad_rows}
    for number, (_, says) in enumerate(cases):
        assert problems.get(number, "")[: len(says)] == says, number
        assert bool(says) == (number in problems)
    assert findings.adapter_rows == {("IP-Adapter", "sd", "face"): 2}
    assert findings.num_idle_pictures == 1
    text = io.StringIO()
    print_plan(plan, findings, Console(file=text, width=200))
    assert "IP-Adapter face of sd: " in text.getvalue()
    assert "1 row with an `ip_adapter_image`, but without an ip_adapter to show it" in text.getvalue()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batching": {"compile": True}}, "batching.compile: model `sd` has IP-Adapters"),
        ({"kernels": {"fuse_qkv": True}}, "kernels.fuse_qkv: model `sd` has IP-Adapters"),
        (
            {"routes": {"text2img": {"model": "sd", "ip_adapter": "a/b"}}},
            "routes.text2img.ip_adapter: model `sd`",
        ),
        ({"routes": {"safe": {"model": "sd", "ip_adapter": "face"}}}, "the task safe has no such parameter"),
        (
            {
                "models": {
                    "sd": {
                        "checkpoint": "demo:sd",
                        "ip_adapters": {"a": {"path": "b", "image_encoder": "../c"}},
                    }
                }
            },
            "`../c` is not the name of a file or folder below the path",
        ),
    ],
)
def test_a_spec_that_no_ip_adapter_can_follow_is_refused(
    published: Path, tmp_path: Path, changes: Record, says: str
) -> None:
    with pytest.raises(ValidationError) as error:
        spec_of(tmp_path, published, [{"prompt": "a fox"}], **changes)

    assert says in str(error.value)


def test_a_job_goes_on_only_with_the_files_with_which_it_began(published: Path, tmp_path: Path) -> None:
    """Another adapter and another image encoder are refused, and messages name them."""
    copied = shutil.copytree(published, tmp_path / "copied")
    row = {"task": "text2img", "prompt": "a fox", "ip_adapter": "face", "ip_adapter_image": PICTURE}
    spec = spec_of(tmp_path, copied, [row])
    plan, findings = make_plan(make_survey(spec))
    output = open_output(spec.output.path)
    claim(output, plan, findings)
    record = read_record(output)
    assert record is not None
    card = plan.job.ip_adapters["sd"]["face"]

    assert plan_of(record, survey_of(spec, record), spec.output.path).job.fingerprint == plan.job.fingerprint
    assert encoder_folder("face", card, 5.0) == copied / ENCODER
    for file, key in (
        (f"{ENCODER}/model.safetensors", "face.image_encoder"),
        ("models/plain.safetensors", "face"),
    ):
        weights = copied / file
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        with pytest.raises(RefusedError, match=rf"models.sd.ip_adapters.{key}: was "):
            plan_of(record, survey_of(spec, record), spec.output.path)
    with pytest.raises(SpecError, match=r"does not have the content that the driver saw"):
        encoder_folder("face", card, 5.0)


def test_an_ip_adapter_on_the_hub_is_pinned_and_then_downloaded(
    published: Path, use_hub: Callable[[str], None]
) -> None:
    """With its image encoder, of which the plan reads no weights; then no network is needed."""
    entry = {"path": "some/adapters", "subfolder": "models", "weight_name": "plus.safetensors"}

    with serve_hub({"some/adapters": published}) as (address, _):
        use_hub(address)
        card = card_of(entry)
        elsewhere = card_of(entry | {"image_encoder": ENCODER})
        folder = encoder_folder("face", card, 5.0)
    use_hub("http://127.0.0.1:1")
    files_on_hub.cache_clear()

    assert (card.file.revision, card.image_encoder.revision) == (commit_of(published), commit_of(published))
    assert card.image_encoder == elsewhere.image_encoder
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert encoder_folder("face", card, 5.0) == folder
