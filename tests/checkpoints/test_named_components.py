"""Components that a spec names by themselves take the places of the checkpoint's own."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch

from actors.checkpoints.model_cards import read_card, refuse_other_files
from actors.checkpoints.model_files import bytes_shared
from actors.checkpoints.weights_check import check_weights
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from actors.storage.output import open_output
from benchmarks.parity.plain_diffusers import LEVELS
from jobs.output.job_record import claim
from jobs.output.resumption import plan_of, survey_of
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from schemas.errors import RefusedError, SpecError
from schemas.job import pinned
from schemas.spec.job_spec import JobSpec, ModelSpec
from tests.support.checkpoints import demo
from tests.support.fake_hub import commit_of, put_in_cache, serve_hub, use_address
from tests.support.in_process import image_of, job_spec, make, plan_for, write_rows
from tests.support.pipelines.published_files import single_file, small_pipeline

OPTIONS = LoadOptions(device=torch.device("cpu"))
ROW = {"row_id": "a", "prompt": "a fox", "seed": 1, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demo:sd with another UNet, another VAE and another scheduler."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(demo("sd"), use_safetensors=True)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(1.1)
        pipeline.vae.decoder.conv_out.weight.mul_(0.5)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    folder = tmp_path_factory.mktemp("other")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this process's own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def model(components: Mapping[str, Any], checkpoint: object = "demo:sd") -> ModelSpec:
    return ModelSpec.model_validate({"checkpoint": str(checkpoint), "components": components})


def spec_of(
    folder: Path, components: Mapping[str, Any], checkpoint: object = "demo:sd", **more: Any
) -> JobSpec:
    """A job of one row with the components."""
    return job_spec(
        write_rows(folder / "rows.parquet", [ROW]),
        folder / "out",
        models={"sd": {"checkpoint": str(checkpoint), "components": components}, **more},
    )


def test_another_component_makes_another_image(tmp_path: Path, other: Path) -> None:
    """The comparison below would be worth nothing if it did not."""
    names: list[dict[str, str]] = [{}, *({name: str(other)} for name in ("vae", "unet", "scheduler"))]
    images = set()
    for number, components in enumerate(names):
        (tmp_path / str(number)).mkdir()
        images.add(make(spec_of(tmp_path / str(number), components)).rows[0]["image_sha256"])

    assert len(images) == len(names)


@pytest.mark.parametrize("names", [["vae"], ["scheduler"], ["unet", "text_encoder", "tokenizer"]])
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_row_is_what_diffusers_gives_with_these_components(
    tmp_path: Path, other: Path, names: list[str], is_whole: bool
) -> None:
    """Whether the folder is that of a whole checkpoint, or of the component alone."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(demo("sd"), use_safetensors=True)
    replacement = diffusers.StableDiffusionPipeline.from_pretrained(other, use_safetensors=True)
    pipeline.register_modules(**{name: replacement.components[name] for name in names})
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    plain = pipeline("a fox", num_inference_steps=2, generator=generator).images[0]

    made = make(spec_of(tmp_path, {name: str(other if is_whole else other / name) for name in names}))

    ours = np.asarray(image_of(made.row("a")), dtype=np.int16)
    assert np.abs(ours - np.asarray(plain, dtype=np.int16)).max() <= LEVELS


@pytest.mark.parametrize(
    ("checkpoint", "component", "kind", "says"),
    [
        ("sd", "unet", "sd2", "its cross_attention_dim is 48, the checkpoint's is 32"),
        ("sd", "unet", "sd-inpaint", "its in_channels is 9, the checkpoint's is 4"),
        ("sd", "unet", "sdxl-refiner", "its addition_embed_type is 'text_time', the checkpoint's is None"),
        ("sdxl", "unet", "sdxl-refiner", "its cross_attention_dim is 32, the checkpoint's is 64"),
        ("sd", "vae", "sdxl", "its scaling_factor is 0.13025, the checkpoint's is 0.18215"),
        ("sd", "vae", "ldm3d", "its in_channels is 6, the checkpoint's is 3"),
        ("sd", "vae", "upscale", "its scaling_factor is 0.08333, the checkpoint's is 0.18215"),
        ("sd", "text_encoder", "sd2", "its hidden_size is 48, the checkpoint's is 32"),
        ("sd", "text_encoder_2", "sdxl", "has no text_encoder_2 (did you mean `text_encoder`?)"),
        ("sd", "depth_estimator", "depth2img", "has no depth_estimator; it has "),
    ],
)
def test_a_component_that_does_not_fit_is_named_by_the_plan(
    checkpoint: str, component: str, kind: str, says: str
) -> None:
    """With the key and both values; diffusers would fail in the midst of a row, or spoil every image."""
    with pytest.raises(SpecError) as raised:
        read_card("m", model({component: str(demo(kind))}, demo(checkpoint)))

    assert str(raised.value).startswith(f"models.m.components.{component}: ")
    assert says in str(raised.value)


def test_a_vae_of_another_factor_does_not_fit(tmp_path: Path) -> None:
    """Its latents have another size."""
    shutil.copytree(demo("sd") / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"block_out_channels": [16, 32]}))

    with pytest.raises(SpecError, match="its block_out_channels has 2 levels, the checkpoint's 4"):
        read_card("m", model({"vae": str(tmp_path / "vae")}))


def test_a_component_of_another_class_does_not_fit(tmp_path: Path) -> None:
    """Also where all its numbers agree."""
    shutil.copytree(demo("sd") / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderTiny"}))

    with pytest.raises(SpecError, match="is a AutoencoderTiny, and the checkpoint needs a AutoencoderKL"):
        read_card("m", model({"vae": str(tmp_path / "vae")}))


@pytest.mark.parametrize(
    ("name", "file", "config", "says"),
    [
        ("safety_checker", "config.json", {"architectures": ["CLIPModel"]}, "is a CLIPModel, and"),
        (
            "feature_extractor",
            "preprocessor_config.json",
            {"image_processor_type": "ViTImageProcessor"},
            "ViT",
        ),
        ("tokenizer", "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "is a T5Tokenizer, and"),
    ],
)
def test_each_component_is_compared_by_its_class(
    tmp_path: Path, name: str, file: str, config: Mapping[str, Any], says: str
) -> None:
    """Also one that the checkpoint does not have, and those of transformers that are no models."""
    (tmp_path / file).write_text(json.dumps(config))

    with pytest.raises(SpecError, match=rf"^models\.m\.components\.{name}: ") as raised:
        read_card("m", model({name: str(tmp_path)}))

    assert says in str(raised.value)


def test_a_safety_checker_can_be_added_with_its_feature_extractor(tmp_path: Path) -> None:
    """Alone it would never run. Spellings of one class of transformers are the same class."""
    for name, file, config in (
        ("safety_checker", "config.json", {"architectures": ["StableDiffusionSafetyChecker"]}),
        ("feature_extractor", "preprocessor_config.json", {"feature_extractor_type": "CLIPFeatureExtractor"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(config))
    names = ("safety_checker", "feature_extractor")

    card = read_card("m", model(dict.fromkeys(names, str(tmp_path))))

    assert card.has_safety_checker
    with pytest.raises(SpecError) as raised:
        read_card("m", model({"safety_checker": str(tmp_path)}))
    assert f"components: {{feature_extractor: {tmp_path}}}" in str(raised.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/no/such", "the folder /no/such does not exist"),
        ("./no-such", "the folder ./no-such does not exist"),
        (str(demo("sd") / "model_index.json"), "is a file; name a folder"),
        (str(demo("sd") / "tokenizer"), "has no readable config.json"),
        ("studio/vaes/vae.safetensors", "run diffusers' `AutoencoderKL.from_single_file(FILE)"),
        ("no/such", "no/such is neither a folder here nor a Hub repository"),
    ],
)
def test_a_component_that_is_not_there_is_named_by_the_plan(path: str, says: str) -> None:
    """By its key and its path."""
    with pytest.raises(SpecError, match=r"^models\.m\.components\.vae: ") as raised:
        read_card("m", model({"vae": path}))

    assert says in str(raised.value)


def test_a_component_that_is_a_pickle_or_half_copied_is_named_by_the_plan(tmp_path: Path) -> None:
    """As the checkpoint's own components are."""
    half, pickled = tmp_path / "half", tmp_path / "pickled"
    for folder in (half, pickled):
        shutil.copytree(demo("sd") / "vae", folder)
    weights = half / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    weights = pickled / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))

    for folder, says in ((half, "is damaged, half copied"), (pickled, "has no .safetensors in vae")):
        spec = model({"vae": str(folder)})
        card = read_card("m", spec)
        with pytest.raises(SpecError, match=rf"^models\.m\.components\.vae: {folder}") as raised:
            check_weights("m", pinned(spec, card), with_checker=True)
        assert says in str(raised.value)


def test_a_component_is_a_part_of_the_job(tmp_path: Path, other: Path) -> None:
    """Its files are hashed: a job goes on with them, and with no others, and a worker compares its copy."""
    shutil.copytree(other / "vae", tmp_path / "vae")
    spec = spec_of(tmp_path, {"vae": str(tmp_path / "vae")})
    output = open_output(str(tmp_path / "out"))
    record = claim(output, *make_plan(survey_of(spec, None)))
    same = plan_of(record, survey_of(spec, record), output.path)
    plain = plan_for(spec_of(tmp_path, {}))

    with (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")

    assert same.job.fingerprint == record.fingerprint != plain.job.fingerprint
    assert "components" not in plain.job.identity()["spec"]["models"]["sd"]
    with pytest.raises(RefusedError, match=r"models\.sd: vae/diffusion_pytorch_model\.safetensors changed"):
        plan_of(record, survey_of(spec, record), output.path)
    with pytest.raises(SpecError, match=r"models\.sd\.components\.vae: .* is not the driver's"):
        refuse_other_files("sd", record.models["sd"])


def test_the_size_of_a_model_is_that_of_what_is_loaded(tmp_path: Path, other: Path) -> None:
    """The checkpoint's own component does not count, and is not compared."""
    checkpoint = tmp_path / "sd"
    shutil.copytree(demo("sd"), checkpoint)
    (checkpoint / "vae" / "more.safetensors").write_bytes(bytes(1000))

    card = read_card("m", model({"vae": str(other)}, checkpoint))

    assert card.weight_bytes == read_card("m", ModelSpec(checkpoint=str(demo("sd")))).weight_bytes
    assert not [name for name in card.files if name.startswith("vae/")]
    assert {*card.components["vae"].files} == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_models_with_the_same_component_have_it_once(tmp_path: Path, other: Path) -> None:
    """Wherever it comes from, and the plan says how much that saves."""
    shutil.copytree(other / "vae", tmp_path / "copy")
    specs = {
        "a": model({"vae": str(other)}),
        "b": model({"vae": str(tmp_path / "copy"), "unet": str(other)}),
        "whole": ModelSpec(checkpoint=str(other)),
    }
    models = ModelCache(specs, OPTIONS, 10**9)
    first, second, whole = (models.get(name).components for name in specs)

    assert first["vae"] is second["vae"] is whole["vae"]
    assert second["unet"] is whole["unet"] is not first["unet"]
    assert first["text_encoder"] is whole["text_encoder"]
    sizes = {
        name: (other / name / "diffusion_pytorch_model.safetensors").stat().st_size
        for name in ("unet", "vae")
    }
    text = (other / "text_encoder" / "model.safetensors").stat().st_size
    cards = {name: pinned(spec, read_card(name, spec)) for name, spec in specs.items()}
    assert bytes_shared(cards) == 2 * sizes["vae"] + sizes["unet"] + 2 * text


def test_a_checker_can_be_added(tmp_path: Path) -> None:
    """To a checkpoint that comes without one."""
    parts = {name: str(demo("sd-safety")) for name in ("safety_checker", "feature_extractor")}

    made = make(spec_of(tmp_path, parts))

    assert made.plan.job.models["sd"].has_safety_checker
    assert [row["nsfw"] for row in made.rows] == [False]


def test_a_single_file_s_vae_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many are published without one, and its place is taken before anything is made."""
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "cache"))
    pipeline = small_pipeline("sd1")
    pipeline.save_pretrained(tmp_path / "sd1")
    file = single_file(pipeline, tmp_path / "model.safetensors", without=("first_stage_model.",))

    made = make(spec_of(tmp_path, {"vae": str(tmp_path / "sd1")}, file))

    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    plain = pipeline("a fox", num_inference_steps=2, generator=generator, height=64, width=64).images[0]
    ours = np.asarray(image_of(made.row("a")), dtype=np.int16)
    assert np.abs(ours - np.asarray(plain, dtype=np.int16)).max() <= LEVELS


def test_components_of_the_hub_are_downloaded_and_no_more(
    hub_cache: Path, tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One from a repository of its own, one from a whole checkpoint's; those that they replace stay there."""
    alone = tmp_path / "alone"
    shutil.copytree(other / "vae", alone)
    (alone / "sd-vae.safetensors").write_bytes(b"the same in another format")
    (alone / "README.md").write_text("x")
    spec = model({"vae": "studio/vae", "unet": "studio/other"}, "studio/sd")
    repositories = {"studio/sd": demo("sd"), "studio/vae": alone, "studio/other": other}

    with serve_hub(repositories) as (address, asked):
        use_address(monkeypatch, address)
        card = read_card("m", spec)
        check_weights("m", pinned(spec, card), with_checker=True)
        planned = [*asked]
        loaded = ModelCache({"m": pinned(spec, card)}, OPTIONS, 10**9).get("m").components
        huggingface_hub.close_session()

    assert not [request for request in planned if request.endswith(".safetensors")]
    assert {
        (request.split("/resolve/")[0].removeprefix("GET /"), request.split("/", 5)[-1])
        for request in asked
        if request.startswith("GET") and request.endswith(".safetensors")
    } == {
        ("studio/sd", "text_encoder/model.safetensors"),
        ("studio/vae", "diffusion_pytorch_model.safetensors"),
        ("studio/other", "unet/diffusion_pytorch_model.safetensors"),
    }
    assert card.components["vae"].revision == commit_of(alone)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(other, use_safetensors=True)
    for name in ("unet", "vae"):
        weights = pipeline.components[name].state_dict()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in loaded[name].state_dict().items())


def test_a_component_stays_at_the_commit_that_the_job_began_with(
    hub_cache: Path, tmp_path: Path, other: Path
) -> None:
    """Wherever its branch is now."""
    shutil.copytree(demo("sd") / "vae", tmp_path / "first")
    shutil.copytree(other / "vae", tmp_path / "second")
    put_in_cache(hub_cache, "studio/vae", tmp_path / "first")
    spec = spec_of(tmp_path, {"vae": "studio/vae"})
    output = open_output(str(tmp_path / "out"))
    record = claim(output, *make_plan(survey_of(spec, None)))
    put_in_cache(hub_cache, "studio/vae", tmp_path / "second")

    plan = plan_of(record, survey_of(spec, record), output.path)

    assert plan.job.fingerprint == record.fingerprint
    assert plan.job.checkpoints["sd"].components["vae"].revision == commit_of(tmp_path / "first")
    present = make_survey(spec).job.models["sd"].components["vae"]
    assert present.revision == commit_of(tmp_path / "second")
    loaded = ModelCache(plan.job.checkpoints, OPTIONS, 10**9).get("sd").components["vae"]
    planned = diffusers.AutoencoderKL.from_pretrained(tmp_path / "first")
    assert torch.equal(loaded.decoder.conv_out.weight, planned.decoder.conv_out.weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: {"path": str(folder), "subfolder": "vae"},
        lambda folder: {"path": str(folder / "vae"), "subfolder": ""},
    ],
)
def test_a_component_s_folder_can_be_named(other: Path, change: Callable[[Path], dict[str, str]]) -> None:
    """Where it is not the component's own name."""
    card = read_card("m", model({"vae": change(other)}))

    assert (
        card.components["vae"].revision
        == read_card("m", model({"vae": str(other)})).components["vae"].revision
    )


def test_reports_name_a_component_beside_its_checkpoint() -> None:
    """Where the images come from is more than the checkpoint."""
    assert model({"vae": "studio/vae"}, "studio/xl").sources_text == "studio/xl, vae from studio/vae"
    assert model({}, "studio/xl").sources_text == "studio/xl"


@pytest.mark.parametrize(
    ("component", "says"),
    [
        ({"path": "a/b", "subfolder": "../x"}, "is not a folder below"),
        ("https://huggingface.co/a/b", "not an address"),
        ({"path": "a/b", "weight": 1}, "weight"),
    ],
)
def test_a_component_s_spec_is_checked(component: Any, says: str) -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match=says):
        model({"vae": component})
