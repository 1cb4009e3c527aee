"""The choices of the section `kernels`: what they change, on a CPU and on a pretended GPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend

from actors.engine.pipelines.kernels import kernel_settings
from actors.engine.pipelines.loaded_model import LoadedModel
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from benchmarks.parity.plain_diffusers import (
    DEPTH_LEVELS,
    LEVELS,
    MODELS,
    ROUTES,
    ROWS,
    distances,
    expected,
    row,
)
from schemas.spec.job_spec import JobSpec, KernelsSpec, ModelSpec
from tests.support.in_process import (
    DEVICE,
    Made,
    Record,
    image_of,
    job_spec,
    make,
    mask,
    model_cache,
    write_rows,
)
from tests.support.in_process import drawn_image as drawn
from tests.support.pretended_gpu.audited_run import audit
from tests.support.pretended_gpu.device_tensor import DEVICE as GPU
from tests.support.pretended_gpu.pretended_cuda import PretendedGPU, pretended_gpu

# What Safe says of every call without guidance.
pytestmark = pytest.mark.filterwarnings("ignore:Safety checker disabled:UserWarning")

OF_A_GPU: Record = {"attention": "efficient", "float32": "tf32", "cudnn_benchmark": True}
"""Choices that are settings of a GPU."""
OF_MODULES: Record = {"fuse_qkv": True, "channels_last": True}
"""Choices that change a model's modules, wherever it is."""
BYTES_OF_DEPTH = "ldm3d"
"""The checkpoint whose depths are two bytes, each of which is rounded for itself."""


def spec_of(folder: Path, rows: list[Record], kernels: Record, **changes: Any) -> JobSpec:
    path = write_rows(folder / "rows.parquet", rows)
    sections = {"models": MODELS, "routes": ROUTES, "kernels": kernels} | changes
    return job_spec(path, folder / "out", **sections)


def made_with(folder: Path, rows: list[Record], kernels: Record, **changes: Any) -> Made:
    folder.mkdir()
    return make(spec_of(folder, rows, kernels, **changes))


def settings() -> Mapping[str, Any]:
    """What torch is told about a GPU now."""
    return {
        "order": torch._C._get_sdp_priority_order(),
        "matrix products": torch.backends.cuda.matmul.allow_tf32,
        "convolutions": torch.backends.cudnn.allow_tf32,
        "timing": torch.backends.cudnn.benchmark,
    }


def test_changed_modules_give_the_images_of_plain_diffusers(tmp_path: Path) -> None:
    """Of every system, within two levels, and with depth maps as near as those of merged batches."""
    one_each = {(each["model"], each["task"]): each for each in ROWS if each["model"] != BYTES_OF_DEPTH}
    rows = [*one_each.values()]

    made = made_with(tmp_path / "job", rows, OF_MODULES)

    far = {each["row_id"]: distances(made.row(each["row_id"]), expected(each["row_id"])) for each in rows}
    assert {name: (image, depth) for name, (image, depth) in far.items() if image > LEVELS} == {}
    assert {name: depth for name, (_, depth) in far.items() if depth > DEPTH_LEVELS} == {}


def test_settings_of_a_gpu_change_nothing_on_a_cpu(tmp_path: Path) -> None:
    """To the bit: such a job can be tried on a machine without a GPU."""
    rows = [row("text", "sd", "text2img"), row("xl", "sdxl", "text2img")]

    chosen, default = (
        made_with(tmp_path / name, rows, kernels) for name, kernels in (("chosen", OF_A_GPU), ("default", {}))
    )

    assert [each["image_sha256"] for each in chosen.rows] == [each["image_sha256"] for each in default.rows]


@pytest.fixture(scope="module")
def gpu() -> Any:
    """A pretended GPU."""
    with pretended_gpu() as device:
        yield device


def test_a_gpu_computes_as_the_spec_says_while_a_model_runs(gpu: PretendedGPU, tmp_path: Path) -> None:
    """What comes before and after has torch's own settings."""
    rows = [row("a", "sd", "text2img"), row("b", "sd", "text2img", seed=8)]
    kernels = {"attention": "efficient", "float32": "ieee", "cudnn_benchmark": True}
    models = {"sd": {"checkpoint": "demo:sd", "dtype": "float16"}}
    spec = spec_of(tmp_path, rows, kernels, models=models, routes={"text2img": {"model": "sd"}})
    cache = ModelCache(spec.models, LoadOptions.of(spec, GPU), 10**9)
    seen: list[Mapping[str, Any]] = []
    cache.get("sd").components["unet"].register_forward_pre_hook(lambda *_: seen.append(settings()))
    before = settings()

    made = audit(spec, cache, gpu).made

    first = int(SDPBackend.EFFICIENT_ATTENTION)
    assert {each["status"] for each in made.rows} == {"ok"}
    assert {each["order"][0] for each in seen} == {first}
    assert [(each["matrix products"], each["convolutions"], each["timing"]) for each in seen] == [
        (False, False, True)
    ] * len(seen)
    assert settings() == before
    assert before["order"][0] != first


@pytest.mark.parametrize(("choice", "first"), [("cudnn", 3), ("flash", 1), ("efficient", 2)])
def test_what_an_implementation_of_attention_cannot_compute_goes_to_the_others(
    choice: str, first: int
) -> None:
    """The VAE has a head of 512 channels, which only two of the four compute."""
    with kernel_settings(GPU, KernelsSpec.model_validate({"attention": choice})):
        order = torch._C._get_sdp_priority_order()
        enabled = [
            torch.backends.cuda.cudnn_sdp_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ]

    assert order[:4] == [first, *(each for each in (3, 1, 2, 0) if each != first)]
    assert all(enabled)


@pytest.mark.parametrize(
    ("choice", "products", "convolutions"),
    [("auto", False, True), ("tf32", True, True), ("ieee", False, False)],
)
def test_float32_is_multiplied_as_the_spec_says(choice: str, products: bool, convolutions: bool) -> None:
    """`auto` is what torch does."""
    with kernel_settings(GPU, KernelsSpec.model_validate({"float32": choice})):
        seen = settings()

    assert (seen["matrix products"], seen["convolutions"]) == (products, convolutions)
    # The compiler asks for it in this form.
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is False


@pytest.mark.parametrize(
    ("kernels", "compiled", "device", "channels_last"),
    [
        ({}, False, GPU, False),
        ({}, True, GPU, True),
        ({}, True, DEVICE, False),
        ({"channels_last": True}, False, DEVICE, True),
        ({"channels_last": False}, True, GPU, False),
    ],
)
def test_the_memory_format_follows_the_compiler_on_a_gpu(
    tmp_path: Path, kernels: Record, compiled: bool, device: torch.device, channels_last: bool
) -> None:
    """Unless the spec says so: without the compiler, each normalisation would change it twice."""
    spec = job_spec(tmp_path, tmp_path, kernels=kernels, batching={"compile": compiled})

    assert LoadOptions.of(spec, device).channels_last is channels_last


def test_fused_weights_are_in_memory_once_and_for_all_pipelines(tmp_path: Path) -> None:
    """Also if two checkpoints share their UNet: it is fused when the first of them is loaded."""
    models = {name: ModelSpec(checkpoint="demo:sd") for name in ("one", "two")}
    plain = LoadedModel("one", models["one"], LoadOptions(device=DEVICE))
    fused = ModelCache(models, LoadOptions(device=DEVICE, fuse_qkv=True), 10**9)

    unet, other = (fused.get(name).components["unet"] for name in models)

    assert unet is other
    assert fused.get("one").weight_bytes == plain.weight_bytes
    processors = {type(processor).__name__ for processor in unet.attn_processors.values()}
    assert processors == {"FusedAttnProcessor2_0"}
    assert all(
        torch.equal(unet.state_dict()[name], weight)
        for name, weight in plain.components["unet"].state_dict().items()
    )


@pytest.mark.parametrize(
    ("kind", "dtype", "encodes", "decodes"),
    [
        ("sdxl", "float16", torch.float32, torch.bfloat16),
        ("upscale", "float16", torch.float32, torch.bfloat16),
        ("sd", "float16", torch.float16, torch.float16),
        ("sdxl", "float32", torch.float32, torch.float32),
        ("sdxl", "bfloat16", torch.float32, torch.bfloat16),
    ],
)
def test_a_vae_that_float16_does_not_hold_decodes_in_bfloat16(
    kind: str, dtype: str, encodes: torch.dtype, decodes: torch.dtype
) -> None:
    """As it does in a bfloat16 job; other VAEs and other precisions are left alone."""
    spec = ModelSpec.model_validate({"checkpoint": f"demo:{kind}", "dtype": dtype})

    vae = LoadedModel(kind, spec, LoadOptions(device=DEVICE, vae_dtype="bfloat16")).components["vae"]

    halves = [{each.dtype for each in half.parameters()} for half in (vae.encoder, vae.decoder)]
    assert halves == [{encodes}, {decodes}]


XL_ROWS = [
    {"row_id": "text", "prompt": "a fox", "seed": 1, "task": "text2img"},
    {"row_id": "image", "prompt": "a fox", "seed": 2, "task": "img2img", "image": drawn()},
    {"row_id": "in", "prompt": "a fox", "seed": 3, "task": "inpaint", "image": drawn(), "mask_image": mask()},
]


def test_images_decoded_in_bfloat16_are_near_those_of_float32(tmp_path: Path) -> None:
    """A level or two on average: bfloat16 has steps of half a level to two levels."""
    half: Record = {"models": {"sd": {"checkpoint": "demo:sdxl", "dtype": "float16"}}}
    half["routes"] = {each["task"]: {"model": "sd", "num_inference_steps": 4} for each in XL_ROWS}

    brain, full = (
        made_with(tmp_path / name, XL_ROWS, {"vae_dtype": name}, **half) for name in ("bfloat16", "auto")
    )

    means = []
    for each in XL_ROWS:
        first, second = (np.asarray(image_of(made.row(each["row_id"])), np.int16) for made in (brain, full))
        means.append(np.abs(first - second).mean())
    assert max(means) < 2
    # Something has changed.
    assert max(means) > 0


def test_the_models_of_a_job_have_its_kernels(tmp_path: Path) -> None:
    """What the spec says reaches the modules of a worker."""
    spec = spec_of(tmp_path, [row("a", "sd", "text2img")], OF_MODULES)

    unet = model_cache(spec).get("sd").components["unet"]

    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.fused_projections
