"""Checkpoints in memory: loaded once, shared, and never more than fit."""

import gc
import inspect
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.checkpoints.component_files import ALLOW_PICKLES
from actors.checkpoints.model_files import bytes_shared
from actors.checkpoints.weights_check import check_weights
from actors.engine.calls.call_arguments import NO_ARGUMENTS
from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.pipelines.loaded_model import LoadedModel, weight_bytes
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from actors.engine.pipelines.pipeline_builder import pipeline_class
from jobs.dispatch.dispatcher import Dispatcher
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec
from schemas.systems.control_parameters import CONTROL, CONTROL_IMAGES
from schemas.systems.system_table import SYSTEMS, System, find_system
from tests.support.checkpoints import demo, sd_checkpoint, sdxl_checkpoint
from tests.support.in_process import drawn_image, job_spec, model_cache, plan_for, worker_for, write_rows
from tests.support.side_effects import record_models

CPU = torch.device("cpu")
KINDS = {"sd": "demo:sd", "sdxl": "demo:sdxl"}


def system(family: str, task: str) -> System:
    found = find_system(family, task)
    assert found is not None
    return found


def cache(capacity_bytes: int = 10**9) -> ModelCache:
    specs = {name: ModelSpec(checkpoint=checkpoint) for name, checkpoint in KINDS.items()}
    return ModelCache(specs, LoadOptions(device=CPU), capacity_bytes)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_three_pipelines_of_a_checkpoint_run_on_the_same_tensors(family: str) -> None:
    """Same `data_ptr` for every weight, so three tasks take the memory of one."""
    model = cache().get(family)

    pipelines = [model.pipeline(system(family, task), None) for task in ("text2img", "img2img", "inpaint")]

    pointers = [
        {
            tensor.data_ptr()
            for part in (pipe.unet, pipe.vae, pipe.text_encoder)
            for tensor in part.parameters()
        }
        for pipe in pipelines
    ]
    assert pointers[0] == pointers[1] == pointers[2]
    assert len({type(pipe) for pipe in pipelines}) == 3
    assert sum(weight_bytes(pipe.components) for pipe in pipelines) == 3 * model.weight_bytes


def test_weights_are_counted_once_however_many_modules_share_them() -> None:
    """Bytes in memory are what the files hold, not what the modules' lists add up to."""
    model = LoadedModel("sd", ModelSpec(checkpoint="demo:sd"), LoadOptions(device=CPU))
    on_disk = sum(file.stat().st_size for file in sd_checkpoint().rglob("*.safetensors"))
    unet = model.pipeline(system("sd", "text2img"), None).unet

    doubled = weight_bytes({"unet": unet, "again": unet, "part": unet.conv_in})

    assert doubled == weight_bytes({"unet": unet})
    assert abs(model.weight_bytes - on_disk) < 0.1 * on_disk


def test_a_model_is_loaded_once() -> None:
    """Asking again gives the same object."""
    models = cache()

    assert models.get("sd") is models.get("sd")
    assert models.num_loads == 1


def test_a_full_cache_drops_the_model_used_longest_ago() -> None:
    """With room for one and a half models, the second pushes the first out."""
    both = sum(cache().get(name).weight_bytes for name in KINDS)
    models = cache(capacity_bytes=int(0.75 * both))
    models.get("sd")
    models.get("sdxl")

    assert models.names == ("sdxl",)

    models.get("sd")

    assert models.names == ("sd",)
    assert models.num_loads == 3


def test_room_is_made_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never are both in memory, which may have no room for two."""
    capacity_bytes = max(cache().get(name).weight_bytes for name in KINDS) + 1_000_000
    events = record_models(monkeypatch)
    models = cache(capacity_bytes)
    names = {name: demo(name).name for name in KINDS}

    for name in ("sd", "sdxl", "sd"):
        models.get(name)

    assert events == [
        *(f"load {names['sd']}", f"free {names['sd']}"),
        *(f"load {names['sdxl']}", f"free {names['sdxl']}"),
        f"load {names['sd']}",
    ]


def test_a_model_that_was_used_since_stays_and_the_one_loaded_after_it_goes() -> None:
    """Of three models two fit."""
    specs = {name: ModelSpec(checkpoint=f"demo:{name}") for name in ("sd", "sdxl", "sd2")}
    sizes = [LoadedModel(name, spec, LoadOptions(device=CPU)).weight_bytes for name, spec in specs.items()]
    models = ModelCache(specs, LoadOptions(device=CPU), sum(sizes) - min(sizes) // 2)

    for name in ("sd", "sdxl", "sd", "sd2"):
        models.get(name)

    assert models.names == ("sd", "sd2")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demo:sd2 with its weights in full precision and, as a variant, in half."""
    folder = tmp_path_factory.mktemp("halves") / "sd2"
    shutil.copytree(demo("sd2"), folder)
    half = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float16
    )
    with torch.no_grad():
        half.unet.conv_out.bias.fill_(0.5)
    half.save_pretrained(folder, variant="fp16")
    return folder


@pytest.mark.parametrize(("dtype", "kept"), [("float32", ("half",)), ("float16", ("sd", "half"))])
def test_a_variant_takes_the_room_of_its_own_files_and_then_what_it_needs_in_memory(
    halves: Path, dtype: str, kept: tuple[str, ...]
) -> None:
    """Its files are half as large; in full precision it needs more, and the other model has to go."""
    specs = {
        "sd": ModelSpec(checkpoint="demo:sd2"),
        "half": ModelSpec.model_validate({"checkpoint": str(halves), "variant": "fp16", "dtype": dtype}),
    }
    size = LoadedModel("sd", specs["sd"], LoadOptions(device=CPU)).weight_bytes
    models = ModelCache(specs, LoadOptions(device=CPU), int(1.7 * size))

    for name in specs:
        models.get(name)

    assert models.names == kept
    assert set(models.get("half").components["unet"].conv_out.bias.tolist()) == {0.5}
    assert models.get("half").weight_bytes == pytest.approx(
        size * (1 if dtype == "float32" else 0.5), rel=0.01
    )


def test_what_models_share_takes_room_once() -> None:
    """Of copies of one model three fit where two different ones would not."""
    specs = {name: ModelSpec(checkpoint="demo:sd") for name in ("sd", "copy", "again")}
    models = ModelCache(specs, LoadOptions(device=CPU), int(2.5 * cache().get("sd").weight_bytes))

    for name in specs:
        models.get(name)

    assert models.names == tuple(specs)


def test_a_model_larger_than_the_cache_is_held_alone() -> None:
    """A budget that is too small for any model slows the job down; it does not stop it."""
    models = cache(capacity_bytes=1)

    models.get("sd")

    assert models.names == ("sd",)


def test_each_call_has_a_scheduler_of_its_own() -> None:
    """Pipeline and scheduler keep a call's state: two calls must never meet in one, nor in a list of one."""
    model = cache().get("sd")

    pipelines = [model.pipeline(system("sd", "text2img"), None) for _ in range(2)]

    first, second = (pipeline.scheduler for pipeline in pipelines)
    assert pipelines[0] is not pipelines[1]
    assert first is not second
    assert first.config == second.config
    changeable = (torch.Tensor, np.ndarray, list)
    own = {name: value for name, value in vars(first).items() if isinstance(value, changeable)}
    assert {"ets", "alphas_cumprod", "_timesteps"} <= own.keys()
    assert [name for name, value in own.items() if value is getattr(second, name)] == []


def test_switches_of_a_checkpoint_reach_every_pipeline(tmp_path: Path) -> None:
    """`force_zeros_for_empty_prompt` is no component; without it XL's img2img would draw something else."""
    base = diffusers.StableDiffusionXLPipeline.from_pretrained(sdxl_checkpoint(), use_safetensors=True)
    base.register_to_config(force_zeros_for_empty_prompt=False)
    base.save_pretrained(tmp_path / "xl")

    model = LoadedModel("xl", ModelSpec(checkpoint=str(tmp_path / "xl")), LoadOptions(device=CPU))

    for task in ("text2img", "img2img", "inpaint"):
        assert model.pipeline(system("sdxl", task), None).config.force_zeros_for_empty_prompt is False


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of demo:sd as it was saved before there were safetensors."""
    folder = tmp_path_factory.mktemp("old") / "sd"
    shutil.copytree(demo("sd"), folder)
    for weights in folder.glob("*/*.safetensors"):
        name = "pytorch_model.bin" if weights.name == "model.safetensors" else f"{weights.stem}.bin"
        torch.save(load_file(weights), weights.with_name(name))
        weights.unlink()
    return folder


def test_pickled_weights_are_not_read(pickled: Path) -> None:
    """A .bin runs code when it is opened; only safetensors are."""
    with pytest.raises(SpecError, match="cannot be loaded"):
        LoadedModel("old", ModelSpec(checkpoint=str(pickled)), LoadOptions(device=CPU))


def test_pickled_weights_are_read_where_the_operator_says_so(
    pickled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan takes them, they are the same weights, and two checkpoints with them hold them once."""
    monkeypatch.setenv(ALLOW_PICKLES, "1")
    specs = {name: ModelSpec(checkpoint=str(pickled)) for name in ("old", "copy")}

    for name, spec in specs.items():
        check_weights(name, spec, with_checker=True)
    models = ModelCache(specs, LoadOptions(device=CPU), 10**9)
    old, copy = (models.get(name) for name in specs)
    new = LoadedModel("new", ModelSpec(checkpoint="demo:sd"), LoadOptions(device=CPU))

    for part in ("unet", "vae", "text_encoder"):
        mine, theirs = old.components[part].state_dict(), new.components[part].state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert copy.components[part] is old.components[part]
    assert old.weight_bytes == new.weight_bytes
    assert bytes_shared(specs) > 0.9 * old.weight_bytes


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"])
def test_a_pickle_runs_nothing_also_where_it_is_allowed(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """torch unpickles tensors and refuses the rest."""
    monkeypatch.setenv(ALLOW_PICKLES, "1")
    shutil.copytree(pickled, tmp_path / "sd")
    torch.save({"weight": _Hostile(tmp_path / "it ran")}, tmp_path / "sd" / part)

    with pytest.raises(SpecError, match="cannot be loaded"):
        LoadedModel("old", ModelSpec(checkpoint=str(tmp_path / "sd")), LoadOptions(device=CPU))

    assert not (tmp_path / "it ran").exists()


class _Hostile:
    """A pickle of it makes a folder when it is opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._folder),)


def test_a_depth_checkpoint_loads_as_published_ones_name_their_parts(tmp_path: Path) -> None:
    """With a class that transformers 5 has no more, and its one number for a size."""
    shutil.copytree(demo("depth2img"), tmp_path / "depth")
    for name, old in (
        ("model_index.json", {"feature_extractor": ["transformers", "DPTFeatureExtractor"]}),
        (
            "feature_extractor/preprocessor_config.json",
            {"feature_extractor_type": "DPTFeatureExtractor", "image_processor_type": None, "size": 32},
        ),
    ):
        file = tmp_path / "depth" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | old))

    model = LoadedModel("depth", ModelSpec(checkpoint=str(tmp_path / "depth")), LoadOptions(device=CPU))

    assert model.components["feature_extractor"].size["height"] == 32
    assert model.pipeline(system("depth2img", "depth2img"), None).feature_extractor is not None


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("text_encoder/model", lambda weight: weight[:-1].contiguous(), "weights have other shapes than"),
        ("unet/diffusion_pytorch_model", lambda weight: weight[:-1].contiguous(), "expected shape"),
        ("vae/diffusion_pytorch_model", lambda weight: None, "weights are missing"),
    ],
)
def test_weights_that_do_not_fit_are_the_checkpoints_fault(
    tmp_path: Path, part: str, change: Callable[[torch.Tensor], torch.Tensor | None], said: str
) -> None:
    """The message names the model and what is wrong: no shard is tried again for it."""
    shutil.copytree(demo("sd"), tmp_path / "sd")
    file = tmp_path / "sd" / f"{part}.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if weights[name].ndim == 2)
    changed = change(weights.pop(name))
    save_file(weights if changed is None else weights | {name: changed}, file, metadata={"format": "pt"})

    with pytest.raises(SpecError, match=rf"models\.tuned: .* cannot be loaded: .*{said}"):
        LoadedModel("tuned", ModelSpec(checkpoint=str(tmp_path / "sd")), LoadOptions(device=CPU))


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("uncorrectable ECC error"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_broken_device_or_full_memory_is_no_checkpoints_fault(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Another worker may do it: the shard is tried again, as after any such error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", fail)

    with pytest.raises(type(error), match=str(error)):
        LoadedModel("sd", ModelSpec(checkpoint="demo:sd"), LoadOptions(device=CPU))


@pytest.mark.parametrize(("dtype", "loaded"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_precision_is_what_the_spec_asks_for(dtype: str, loaded: torch.dtype) -> None:
    """`dtype` reaches every module; left to darkroom, it is full precision on a CPU."""
    spec = ModelSpec.model_validate({"checkpoint": "demo:sd", "dtype": dtype})
    model = LoadedModel("sd", spec, LoadOptions(device=CPU))

    pipeline = model.pipeline(system("sd", "text2img"), None)

    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {loaded}


def test_every_system_names_a_pipeline_that_takes_its_parameters() -> None:
    """The table cannot drift from diffusers: each class exists, with these arguments and defaults."""
    renamed = {"StableDiffusionUpscaleLDM3DPipeline": {"image": "rgb", "depth_map": "depth"}}
    for each in SYSTEMS:
        call = inspect.signature(pipeline_class(each.pipeline).__call__).parameters
        names = renamed.get(each.pipeline, {})
        for name, default in each.defaults.items():
            if name in (*NO_ARGUMENTS, *CONTROL) or (names and name in ("height", "width")):
                continue
            assert name in call, (each.pipeline, name)
            if default is not None:
                assert call[name].default == default, (each.pipeline, name)
        images = {*each.images, *each.optional_images} - {*CONTROL_IMAGES}
        assert {names.get(name, name) for name in images} <= set(call)
        assert set(each.texts) <= set(call)


def test_pipelines_with_control_nets_take_the_same_parameters_and_those_of_control() -> None:
    """But for those that the table says they lose."""
    pipelines = [
        (name, each) for each in SYSTEMS for name in (each.control_pipeline, each.union_pipeline) if name
    ]
    for name, each in pipelines:
        call = inspect.signature(pipeline_class(name).__call__).parameters
        is_union = name == each.union_pipeline
        own = {*each.defaults} - {*NO_ARGUMENTS, *each.lost_with_control}
        assert own - {*call} == (set() if is_union else {"control_mode"}), name
        assert not {*each.lost_with_control} & {*call}, name
        for parameter in CONTROL.keys() - {*NO_ARGUMENTS, "control_mode"}:
            assert call[parameter].default == each.defaults[parameter], (name, parameter)
    assert len(pipelines) == 12


def test_checkpoints_with_the_same_component_hold_it_once() -> None:
    """By the content of its files, whatever its folder is called; in another dtype it is another one."""
    specs = {
        "half": ModelSpec(checkpoint="demo:sd", dtype="bfloat16"),
        "sd": ModelSpec(checkpoint="demo:sd"),
        "copy": ModelSpec(checkpoint="demo:sd"),
        "other": ModelSpec(checkpoint="demo:sdxl"),
    }
    models = ModelCache(specs, LoadOptions(device=CPU), 10**9)
    half, first, copy, other = (models.get(name) for name in specs)

    assert copy.components["vae"] is first.components["vae"]
    assert copy.components["unet"] is first.components["unet"]
    assert half.components["vae"] is not first.components["vae"]
    assert other.components["vae"] is not first.components["vae"]
    assert models.names == tuple(specs)


def test_a_checkpoint_with_another_unet_shares_the_rest(tmp_path: Path) -> None:
    """A fine-tuned UNet beside its base: text encoder and VAE are held once, and the plan says how much."""
    tuned = diffusers.StableDiffusionPipeline.from_pretrained(demo("sd"), use_safetensors=True)
    with torch.no_grad():
        tuned.unet.conv_out.weight.mul_(1.01)
    tuned.save_pretrained(tmp_path / "tuned")
    specs = {"sd": ModelSpec(checkpoint="demo:sd"), "tuned": ModelSpec(checkpoint=str(tmp_path / "tuned"))}
    models = ModelCache(specs, LoadOptions(device=CPU), 10**9)
    base, other = (models.get(name) for name in specs)

    assert other.components["vae"] is base.components["vae"]
    assert other.components["text_encoder"] is base.components["text_encoder"]
    assert other.components["unet"] is not base.components["unet"]
    both = weight_bytes({"vae": base.components["vae"], "text": base.components["text_encoder"]})
    assert abs(bytes_shared(specs) - both) < 0.05 * both


@pytest.mark.parametrize("capacity_bytes", [10**9, 1])
def test_one_worker_loads_each_of_five_checkpoints_once(tmp_path: Path, capacity_bytes: int) -> None:
    """Their rows are mixed; even where one model fits at a time, shards come model by model."""
    kinds = ("sd", "sdxl", "upscale", "variation", "ldm3d")
    tasks = {
        "sd": "text2img",
        "sdxl": "text2img",
        "upscale": "upscale",
        "variation": "variation",
        "ldm3d": "ldm3d",
    }
    rows = [
        {"row_id": i, "task": tasks[kind], "model": kind, "prompt": "x", "image": drawn_image((32, 32))}
        for i, kind in enumerate(kinds * 4)
    ]
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", rows),
        tmp_path / "out",
        models={kind: {"checkpoint": f"demo:{kind}"} for kind in kinds},
        routes={task: {"model": kind, "num_inference_steps": 1} for kind, task in tasks.items()},
        batching={"shard_rows": 2},
    )
    plan = plan_for(spec)
    queues = {kind: [shard for shard in plan.shards() if shard.model == kind] for kind in kinds}
    dispatcher = Dispatcher(queues, max_attempts=1)
    engine = DiffusersEngine(model_cache(spec, capacity_bytes), spec)
    dispatcher.join("w")

    with worker_for(plan, engine) as worker:
        while not dispatcher.finished:
            shard = dispatcher.next_for("w", engine.models_loaded)
            assert shard is not None
            report = worker.run(shard)
            assert report.failed == 0
            dispatcher.finish("w", shard)

    assert engine.num_loads == 5


def test_a_dropped_model_takes_what_it_alone_used() -> None:
    """Nothing is kept alive by having been shared once."""
    models = cache(capacity_bytes=1)
    vae = weakref.ref(models.get("sd").components["vae"])

    models.get("sdxl")
    gc.collect()

    assert vae() is None


def test_a_learned_token_of_several_vectors_is_spelt_out(tmp_path: Path) -> None:
    """As diffusers does it, where a checkpoint's tokenizer has such tokens; else prompts stay as they are."""
    learned = diffusers.StableDiffusionPipeline.from_pretrained(demo("sd"), use_safetensors=True)
    learned.tokenizer.add_tokens(["<cat>", "<cat>_1"])
    learned.text_encoder.resize_token_embeddings(len(learned.tokenizer))
    learned.save_pretrained(tmp_path, safe_serialization=True)
    text2img = system("sd", "text2img")

    converted = [
        model.pipeline(text2img, None).maybe_convert_prompt(
            ["a <cat> by night"], model.components["tokenizer"]
        )
        for model in (
            LoadedModel("cat", ModelSpec(checkpoint=str(tmp_path)), LoadOptions(device=CPU)),
            cache().get("sd"),
        )
    ]

    assert converted == [["a <cat> <cat>_1 by night"], ["a <cat> by night"]]
