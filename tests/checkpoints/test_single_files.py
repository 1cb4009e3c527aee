"""Checkpoints in single files: each image is what `from_single_file` gives, and each wrong file is named."""

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from actors.checkpoints.component_files import files_on_hub
from actors.checkpoints.model_cards import read_card, refuse_other_files
from actors.checkpoints.single_files.safetensors_headers import Header, Tensor
from actors.checkpoints.single_files.single_file_kinds import recognise
from actors.engine.pipelines.loading import LoadOptions, on_this_machine
from actors.engine.pipelines.model_cache import ModelCache
from actors.storage.output import open_output
from actors.storage.stores import open_storage
from benchmarks.parity.plain_diffusers import LEVELS
from jobs.output.job_record import claim
from jobs.output.resumption import plan_of, survey_of
from jobs.planning.plan import make_plan
from schemas.errors import RefusedError, SpecError
from schemas.job import pinned
from schemas.spec.job_spec import ModelSpec
from tests.support.fake_hub import commit_of, serve_hub, use_address
from tests.support.in_process import Record, drawn_image, image_of, job_spec, make, mask, plan_for, write_rows
from tests.support.pipelines.published_files import KINDS, single_file, single_file_state, small_pipeline
from tests.support.s3.s3_server import S3Server

CPU = torch.device("cpu")
OPTIONS = LoadOptions(device=CPU)
TASKS = {"sd1": "text2img", "sd2": "text2img", "xl": "text2img", "xl-refiner": "img2img"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for files, with a cache of its own: other tests must not find what was converted here."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def published(folder: Path) -> dict[str, Path]:
    """Each kind as a single file, by its name; beside each file is the folder with its configuration."""
    files = {}
    for kind in KINDS:
        pipeline = small_pipeline(kind)
        pipeline.save_pretrained(folder / kind)
        (folder / kind / "scheduler" / "scheduler_config.json").write_text(
            json.dumps(as_published(pipeline.scheduler))
        )
        files[kind] = single_file(pipeline, folder / f"{kind}.safetensors")
    return files


def as_published(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration without the defaults of its class, which a published one does not have."""
    config = dict(scheduler.config)
    defaults = config.pop("_use_default_values", [])
    return {"_class_name": type(scheduler).__name__} | {
        name: value for name, value in config.items() if name not in defaults
    }


def rows_of(kind: str) -> list[Record]:
    """Rows for the kind's task that differ in their prompts, seeds, guidance and steps."""
    task = "inpaint" if kind.endswith("-inpaint") else TASKS[kind]
    images = {
        "text2img": {"height": 64, "width": 64},
        "img2img": {"image": drawn_image(), "strength": 0.7},
        "inpaint": {"image": drawn_image(), "mask_image": mask()},
    }
    rows: list[Record] = [
        {"prompt": "a photo of a fox", "seed": 1},
        {"prompt": "snow, ünïcode 写真", "seed": 2, "negative_prompt": "text", "guidance_scale": 3.0},
        {"prompt": "a hill", "seed": 3, "num_inference_steps": 4, "scheduler": "DPMSolverMultistepScheduler"},
    ]
    return [{"row_id": str(seed), "task": task} | images[task] | row for seed, row in enumerate(rows)]


def plain(pipeline: Any, row: Record) -> Any:
    """The row's image by a plain call."""
    pipeline.set_progress_bar_config(disable=True)
    arguments = {
        name: value for name, value in row.items() if name not in ("row_id", "task", "seed", "scheduler")
    }
    for name in arguments.keys() & {"image", "mask_image"}:
        arguments[name] = image_of({"image": arguments[name]})
    scheduler = pipeline.scheduler
    if "scheduler" in row:
        pipeline.scheduler = getattr(diffusers, row["scheduler"]).from_config(scheduler.config)
    generator = torch.Generator().manual_seed(row["seed"])
    image = pipeline(**({"num_inference_steps": 2} | arguments), generator=generator).images[0]
    pipeline.scheduler = scheduler
    return np.asarray(image, dtype=np.int16)


def assert_equal_images(file: Path, kind: str, pipeline: Any, output: Path, **model: Any) -> None:
    """Check that a job with the file gives what the pipeline gives, row by row."""
    rows = rows_of(kind)
    task = rows[0]["task"]
    spec = job_spec(
        write_rows(output.with_suffix(".parquet"), rows),
        output,
        models={"m": {"checkpoint": str(file), **model}},
        routes={task: {"model": "m", "num_inference_steps": 2}},
        default_route=task,
    )
    made = make(spec)
    for row in rows:
        ours = made.row(row["row_id"])
        assert ours["status"] == "ok", ours["error_message"]
        difference = np.abs(np.asarray(image_of(ours), dtype=np.int16) - plain(pipeline, row)).max()
        assert difference <= LEVELS, row


def from_single_file(file: Path, configuration: Path, **arguments: Any) -> Any:
    """The plain diffusers pipeline of a single file."""
    index = json.loads((configuration / "model_index.json").read_text())
    cls = getattr(diffusers, index["_class_name"])
    return cls.from_single_file(str(file), config=str(configuration), dtype=torch.float32, **arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_what_from_single_file_gives(
    published: dict[str, Path], folder: Path, tmp_path: Path, kind: str
) -> None:
    """With a configuration that was published with it; darkroom's own comes from the file's header."""
    file = published[kind]

    pipeline = from_single_file(file, folder / kind)

    assert_equal_images(file, kind, pipeline, tmp_path / "out")


@pytest.mark.parametrize("kind", ["sd1", "xl"])
@pytest.mark.parametrize("marks", [("v_pred",), ("v_pred", "ztsnr")])
def test_the_marks_of_trainers_change_the_scheduler(
    folder: Path, tmp_path: Path, kind: str, marks: tuple[str, ...]
) -> None:
    """diffusers does not read them; its users set by hand what darkroom sets."""
    pipeline = small_pipeline(kind)
    file = single_file(pipeline, tmp_path / "marked.safetensors", marks=marks)
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in marks}
    cls = diffusers.DDIMScheduler if (kind, len(marks)) == ("sd1", 2) else type(pipeline.scheduler)
    if cls is diffusers.PNDMScheduler:
        del settings["rescale_betas_zero_snr"]

    pipeline.scheduler = cls.from_config(as_published(pipeline.scheduler) | settings)

    assert_equal_images(file, kind, pipeline, tmp_path / "out")


def test_half_precision_is_kept(folder: Path, tmp_path: Path) -> None:
    """The folder has the file's precision, and so its size; a file of two precisions has the larger one."""
    pipeline = small_pipeline("sd1")
    half = single_file(pipeline, tmp_path / "half.safetensors", dtype=torch.float16)
    specs = {"half": ModelSpec(checkpoint=str(half))}

    kept = Path(on_this_machine("half", specs["half"], OPTIONS).checkpoint)

    size_bytes = sum(path.stat().st_size for path in kept.glob("*/*.safetensors"))
    assert abs(size_bytes - half.stat().st_size) < 0.05 * size_bytes
    assert read_card("half", specs["half"]).weight_bytes == pytest.approx(size_bytes, rel=0.05)
    tensors = header_of(pipeline).tensors
    key = "first_stage_model.decoder.conv_out.weight"
    other = Header({name: Tensor("F16", each.shape) for name, each in tensors.items()}, {})
    assert recognise(other).dtype == "float16"
    assert recognise(Header({**other.tensors, key: tensors[key]}, {})).dtype == "float32"


def header_of(pipeline: Any, metadata: Mapping[str, str] | None = None) -> Header:
    """The header that the pipeline's single file has."""
    state = single_file_state(pipeline)
    return Header({name: Tensor("F32", tuple(each.shape)) for name, each in state.items()}, metadata or {})


PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        "text_encoder": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    },
    "sd2": {
        "unet": {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
        },
        "text_encoder": {
            "hidden_size": 1024,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "hidden_act": "gelu",
        },
    },
    "xl": {
        "unet": {
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "text_encoder": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        "text_encoder_2": {
            "hidden_size": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "intermediate_size": 5120,
            "projection_dim": 1280,
            "hidden_act": "gelu",
        },
    },
    "xl-refiner": {
        "unet": {
            "sample_size": 128,
            "cross_attention_dim": 1280,
            "attention_head_dim": [6, 12, 24, 24],
            "block_out_channels": [384, 768, 1536, 1536],
            "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
            "transformer_layers_per_block": 4,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2560,
        },
        "text_encoder_2": {
            "hidden_size": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "intermediate_size": 5120,
            "projection_dim": 1280,
            "hidden_act": "gelu",
        },
    },
}
"""What the published configurations have, by component, besides the defaults of the libraries."""


class Published:
    """The published modules in their full sizes, without memory."""

    def __init__(self, kind: str) -> None:
        configs = PUBLISHED[kind]
        with torch.device("meta"):
            self.unet = diffusers.UNet2DConditionModel(**configs["unet"])
            self.vae = diffusers.AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
            )
            text = CLIPTextConfig(
                **{"intermediate_size": 3072, "hidden_act": "quick_gelu"} | configs.get("text_encoder", {})
            )
            self.text_encoder = CLIPTextModel(text) if "text_encoder" in configs else None
            if "text_encoder_2" in configs:
                self.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"]))


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_configuration_is_the_published_one(kind: str) -> None:
    """Every key of the full-sized models, from the shapes of their tensors."""
    recognised = recognise(header_of(Published(kind)))

    for component, expected in PUBLISHED[kind].items():
        with torch.device("meta"):
            defaults = diffusers.UNet2DConditionModel().config if component == "unet" else {}
        config = {**defaults, **recognised.configs[f"{component}/config.json"]}
        if isinstance(expected.get("transformer_layers_per_block"), int):
            # Levels without attention have no such number.
            assert config["transformer_layers_per_block"] == [1, 4, 4, 4]
            expected = expected | {"transformer_layers_per_block": [1, 4, 4, 4]}
        assert {key: config[key] for key in expected} == expected
    vae = recognised.configs["vae/config.json"]
    assert (vae["block_out_channels"], vae["layers_per_block"]) == ([128, 256, 512, 512], 2)
    assert vae["scaling_factor"] == (0.13025 if kind.startswith("xl") else 0.18215)


def test_stable_diffusion_2_s_base_model_is_told_by_its_metadata() -> None:
    """Its tensors have the shapes of the larger one, for which it is taken without them."""
    pipeline = small_pipeline("sd2")

    unmarked = recognise(header_of(pipeline)).configs
    base = recognise(header_of(pipeline, {"modelspec.prediction_type": "epsilon"})).configs

    kinds = [
        (
            configs["scheduler/scheduler_config.json"]["prediction_type"],
            configs["unet/config.json"]["sample_size"],
        )
        for configs in (unmarked, base)
    ]
    assert kinds == [("v_prediction", 96), ("epsilon", 64)]


def paper_file(path: Path, tensors: Mapping[str, Any], size_bytes: int | None = None) -> Path:
    """A file with a header of these tensors, and nothing but zeros after it; `size_bytes`: cut off there."""
    header, position = {}, 0
    for name, tensor in tensors.items():
        end = position + tensor.size_bytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position if size_bytes is None else size_bytes)
    return path


@cache
def whole() -> dict[str, Tensor]:
    """The tensors of a small Stable Diffusion 1, which every test process needs to collect the tests."""
    return dict(header_of(small_pipeline("sd1")).tensors)


def without(prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in whole().items() if not name.startswith(prefix)}


ONE = Tensor("F32", (4, 4))
UNET_IN = "model.diffusion_model.input_blocks.0.0.weight"
TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {"lora_unet_down_blocks_0.lora_up.weight": ONE},
            "it is a LoRA or another adapter, not a checkpoint",
        ),
        ({"unet.down_blocks.0.to_q.lora_A.weight": ONE}, "it is a LoRA"),
        ({"control_model.input_blocks.0.0.weight": ONE}, "it is a ControlNet, not a checkpoint"),
        ({"model.diffusion_model.joint_blocks.0.x": ONE}, "it is a checkpoint of Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": ONE}, "it is a checkpoint of Flux"),
        ({"image_proj.proj.weight": ONE}, "it is an IP-Adapter"),
        ({"emb_params": ONE}, "it is a textual inversion"),
        ({"down_blocks.0.resnets.0.conv1.weight": ONE}, "name its folder under `components`"),
        ({"encoder.mid.block_1.conv1.weight": ONE}, "it is a VAE"),
        ({"a": ONE}, "it has no UNet of Stable Diffusion; its first tensors are a"),
        ({}, "its first tensors are none"),
        (whole() | {"edm_mean": ONE}, "Playground 2.5"),
        (whole() | {UNET_IN: Tensor("F32", (32, 5, 3, 3))}, "whose UNet takes 5 channels"),
        (whole() | {UNET_IN: Tensor("F32", (32, 4))}, f"its {UNET_IN} has the shape [32, 4]"),
        (whole() | {UNET_IN: Tensor("I8", (32, 4, 3, 3))}, f"its tensor {UNET_IN} has the type I8"),
        (without("model.diffusion_model.output_blocks.3"), "layers on the way down and 3 on the way up"),
        (without("model.diffusion_model.middle_block.1"), "middle_block.1.proj_in.weight"),
        (without("cond_stage_model."), "it has no text encoder, and a UNet that reads texts 64 wide"),
        (without("first_stage_model."), "has no vae; name one with models.m.components: {vae: "),
        (
            whole() | {TOKENS: Tensor("F32", (600, 64))},
            "knows 600 tokens, and would be given CLIP's tokenizer",
        ),
    ],
)
def test_a_file_of_another_kind_is_named_by_the_plan(
    tmp_path: Path, tensors: dict[str, Tensor], says: str
) -> None:
    """Its header says what it is. Nothing else of it is read."""
    file = paper_file(tmp_path / "file.safetensors", tensors)

    with pytest.raises(SpecError) as raised:
        read_card("m", ModelSpec(checkpoint=str(file)))

    assert str(raised.value).startswith(f"models.m.checkpoint: {file} ")
    assert says in str(raised.value)


def overlapping(header: dict[str, Any]) -> None:
    header["b"]["data_offsets"] = header["a"]["data_offsets"]


def larger(header: dict[str, Any]) -> None:
    header["b"]["shape"] = [1 << 40, 4]


def no_number(header: dict[str, Any]) -> None:
    header["b"]["shape"] = ["4", 4]


def another_type(header: dict[str, Any]) -> None:
    header["b"]["dtype"] = "F99"


def no_offsets(header: dict[str, Any]) -> None:
    del header["b"]["data_offsets"]


@pytest.mark.parametrize("lie", [overlapping, larger, no_number, another_type, no_offsets])
def test_a_header_that_lies_is_named_by_the_plan(tmp_path: Path, lie: Any) -> None:
    """Sizes that are not those of the shapes, bytes that two tensors have, or no header at all."""
    header = {
        "a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]},
        "b": {"dtype": "F32", "shape": [4, 4], "data_offsets": [64, 128]},
    }
    lie(header)
    text = json.dumps(header).encode()
    file = tmp_path / "file.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(128))

    with pytest.raises(SpecError, match=r"cannot be used: its header (gives b|is not that of)"):
        read_card("m", ModelSpec(checkpoint=str(file)))


@pytest.mark.parametrize("size_bytes", [0, 4, 100, 100_000])
def test_a_truncated_file_is_named_by_the_plan(tmp_path: Path, size_bytes: int) -> None:
    """Cut off in its length, in its header, or in its tensors; also a page that a server sent instead."""
    file = paper_file(tmp_path / "file.safetensors", whole(), size_bytes)
    page = tmp_path / "page.safetensors"
    page.write_bytes(b"<!DOCTYPE html>" * 10)
    longer = paper_file(tmp_path / "longer.safetensors", {"a": ONE})
    longer.write_bytes(longer.read_bytes() + b"\0")

    for each in (file, page, longer):
        with pytest.raises(SpecError, match=r"safetensors cannot be used: .*cut off"):
            read_card("m", ModelSpec(checkpoint=str(each)))


@pytest.mark.parametrize("checkpoint", ["model.ckpt", "studio/sd/model.ckpt", "/a/b.pt"])
def test_a_pickle_is_refused_with_the_way_out(checkpoint: str) -> None:
    """Whether it is there or not: nothing of it is read."""
    with pytest.raises(SpecError, match=r"is a pickle, which can run code.*Name the same .*\.safetensors"):
        read_card("m", ModelSpec(checkpoint=checkpoint))


@pytest.mark.parametrize(
    "checkpoint", ["/no/such.safetensors", "such.safetensors", "folder/such.safetensors"]
)
def test_a_file_that_is_not_there_is_named(checkpoint: str) -> None:
    """As a file, not as a repository."""
    with pytest.raises(SpecError, match=r"the file /.*such\.safetensors does not exist"):
        read_card("m", ModelSpec(checkpoint=checkpoint))


def test_a_single_file_has_no_variants(published: dict[str, Path]) -> None:
    """diffusers would look for one in the folder that the file becomes."""
    with pytest.raises(SpecError, match=r"^models\.m\.variant: .* has no variants; leave `variant` out"):
        read_card("m", ModelSpec(checkpoint=str(published["sd1"]), variant="fp16"))


def test_a_plan_converts_nothing_and_workers_convert_once(
    published: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Eight workers that begin at the same moment wait for the one that converts."""
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "cache"))
    caplog.set_level("INFO")
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", [{"prompt": "a", "row_id": "a"}]),
        tmp_path / "out",
        models={"sd": {"checkpoint": str(published["sd1"])}},
    )
    model = plan_for(spec).job.checkpoints["sd"]
    planned = [*(tmp_path / "cache").glob("single-file*")]

    with ThreadPoolExecutor(8) as threads:
        folders = {
            each.checkpoint for each in threads.map(lambda _: on_this_machine("sd", model, OPTIONS), range(8))
        }

    assert planned == []
    assert len(folders) == 1
    assert caplog.text.count("converting checkpoint=") == 1


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's fault is the spec's, and the next worker does not take half a folder for a whole one."""
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "cache"))
    tensors = whole() | {"model.diffusion_model.out.0.weight": Tensor("F32", (31,))}
    file = paper_file(tmp_path / "file.safetensors", tensors)

    with pytest.raises(SpecError, match=r"models\.m\.checkpoint: .* cannot be converted"):
        on_this_machine("m", ModelSpec(checkpoint=str(file)), OPTIONS)

    assert [path.suffix for path in (tmp_path / "cache").glob("*single-file*")] == [".lock"]


def test_a_changed_file_is_another_job(published: dict[str, Path], tmp_path: Path) -> None:
    """A job goes on with the file that it began with, wherever it lies, and says which file has changed."""
    file = tmp_path / "model.safetensors"
    shutil.copy(published["sd1"], file)
    rows = write_rows(tmp_path / "rows.parquet", [{"prompt": "a", "row_id": "a"}])
    spec = job_spec(rows, tmp_path / "out", models={"sd": {"checkpoint": str(file)}})
    output = open_output(str(tmp_path / "out"))
    record = claim(output, *make_plan(survey_of(spec, None)))
    same = plan_of(record, survey_of(spec, record), output.path)

    with file.open("r+b") as changed:
        changed.seek(-1, 2)
        changed.write(b"\1")

    assert same.job.fingerprint == record.fingerprint
    with pytest.raises(RefusedError, match=r"models\.sd: model\.safetensors changed"):
        plan_of(record, survey_of(spec, record), output.path)
    with pytest.raises(SpecError, match=r"model\.safetensors on .* is not the driver's"):
        refuse_other_files("sd", record.models["sd"])


def test_a_file_on_s3_is_planned_by_its_header_and_downloaded_by_workers(
    published: dict[str, Path], folder: Path, tmp_path: Path, s3_env: S3Server
) -> None:
    """Its ETag is its revision: a worker that finds another one stops."""
    uri = "s3://inp/models/sd1.safetensors"
    storage = open_storage("s3://inp")
    storage.replace(uri, published["sd1"].read_bytes())
    assert_equal_images(
        Path(), "sd1", from_single_file(published["sd1"], folder / "sd1"), tmp_path / "out", checkpoint=uri
    )
    card = read_card("sd", ModelSpec(checkpoint=uri))
    storage.replace(uri, published["sd2"].read_bytes())

    with pytest.raises(SpecError, match="has changed since the job was planned"):
        on_this_machine("sd", ModelSpec(checkpoint=uri, revision=card.revision), OPTIONS)
    with pytest.raises(
        SpecError, match=r"models\.sd\.checkpoint: there is no object s3://inp/none\.safetensors"
    ):
        read_card("sd", ModelSpec(checkpoint="s3://inp/none.safetensors"))


def test_a_file_of_the_hub_is_planned_by_its_header_and_downloaded_at_its_commit(
    published: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is asked for this one file, and not for a configuration, although it could be reached."""
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    first, second = tmp_path / "first", tmp_path / "second"
    for commit, kind in ((first, "sd1"), (second, "sd2")):
        (commit / "all").mkdir(parents=True)
        shutil.copy(published[kind], commit / "all" / "model.safetensors")
    spec = ModelSpec(checkpoint="studio/sd/all/model.safetensors")
    commits = [first]

    with serve_hub({"studio/sd": commits}) as (address, asked):
        use_address(monkeypatch, address)
        card = read_card("sd", spec)
        planned = [*asked]
        commits.append(second)
        files_on_hub.cache_clear()
        moved = read_card("sd", spec)
        loaded = ModelCache({"sd": pinned(spec, card)}, OPTIONS, 10**9).get("sd").components
        with pytest.raises(SpecError, match=r"repository studio/sd of the Hub has no file none\.safetensors"):
            read_card("sd", ModelSpec(checkpoint="studio/sd/none.safetensors"))
        huggingface_hub.close_session()
    offline = ModelCache({"sd": pinned(spec, card)}, OPTIONS, 10**9).get("sd")

    assert (card.revision, moved.revision) == (commit_of(first), commit_of(second))
    assert card.weight_bytes == pytest.approx(published["sd1"].stat().st_size, rel=0.05)
    assert sum("/resolve/" in request for request in planned) == 1  # a part of the file, with its header
    assert {each.partition("?")[0].rpartition("/")[2] for each in asked if "/resolve/" in each} == {
        "model.safetensors"
    }
    plain = from_single_file(published["sd1"], folder / "sd1")
    assert torch.equal(loaded["unet"].conv_out.weight, plain.unet.conv_out.weight)
    assert torch.equal(offline.components["unet"].conv_out.weight, plain.unet.conv_out.weight)


def test_two_names_of_one_file_share_its_modules(published: dict[str, Path]) -> None:
    """As any other checkpoints with equal components."""
    spec = ModelSpec(checkpoint=str(published["sd1"]))
    models = ModelCache({"a": spec, "b": spec}, OPTIONS, 10**9)

    assert models.get("a").components["unet"] is models.get("b").components["unet"]
