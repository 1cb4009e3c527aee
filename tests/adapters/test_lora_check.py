"""A plan takes the LoRAs that diffusers applies to a checkpoint, and refuses those that it does not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.numpy import save_file

from actors.checkpoints.adapters.lora_check import MAX_NOTES, find_loras
from actors.checkpoints.adapters.lora_layers import translated
from actors.checkpoints.component_files import files_on_hub
from actors.checkpoints.model_cards import read_card
from actors.engine.adapters.false_reports import without_false_reports
from actors.storage.stores import Stores
from demo.random_loras import plain_pipeline
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec
from tests.adapters.lora_forms import (
    Layer,
    Tensors,
    diffusers,
    kohya,
    layers_of,
    matrices,
    old_diffusers,
    peft,
    shapes_of,
    write,
)
from tests.support.checkpoints import demo, paper_checkpoint
from tests.support.fake_hub import serve_hub
from tests.support.pipelines.published_files import single_file, small_pipeline


def found(file: Path, checkpoint: str) -> list[str]:
    """The notes on a LoRA of this checkpoint; SpecError where the plan refuses it."""
    model = ModelSpec.model_validate({"checkpoint": checkpoint, "loras": {"chalk": str(file)}})
    files, notes = find_loras("m", model, read_card("m", model), Stores())
    assert [*files] == ["chalk"]
    return notes


def refusal(file: Path, checkpoint: str) -> str:
    with pytest.raises(SpecError) as error:
        found(file, checkpoint)
    assert str(error.value).startswith("models.m.loras.chalk: ")
    assert str(file) in str(error.value)
    return str(error.value)


def num_applied(file: Path, kind: str) -> int:
    """The number of layers that diffusers changes."""
    pipeline = plain_pipeline(demo(kind))
    with without_false_reports():
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
    modules = (getattr(pipeline, name, None) for name in ("unet", "text_encoder", "text_encoder_2"))
    return sum(
        isinstance(layer, BaseTunerLayer) for module in modules if module for layer in module.modules()
    )


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl", "sdxl-refiner", "upscale", "depth2img", "ldm3d"])
@pytest.mark.parametrize("form", [kohya, peft, diffusers, old_diffusers])
def test_a_lora_in_each_published_form_is_taken(
    form: Callable[[str, list[Layer]], Tensors], kind: str, tmp_path: Path
) -> None:
    """For the UNet and each text encoder that the checkpoint has; old files have attention alone."""
    layers = layers_of(kind, "unet")
    for encoder in ("text_encoder", "text_encoder_2"):
        endings = ("q_proj", "k_proj", "v_proj", "out_proj", *(() if form is old_diffusers else ("fc1",)))
        layers += layers_of(kind, encoder, endings)
    file = write(tmp_path / "chalk.safetensors", form(kind, layers))

    notes = found(file, f"demo:{kind}")

    assert notes == []
    assert num_applied(file, kind) == len(layers) > 30


def test_a_lora_for_xl_in_the_names_of_the_first_code_is_taken(tmp_path: Path) -> None:
    """kohya's trainer has these names; diffusers translates them for XL alone."""
    per_block = json.loads((demo("sdxl") / "unet" / "config.json").read_text())["layers_per_block"]
    shapes = {name.replace(".", "_"): shape for name, shape in shapes_of("sdxl", "unet").items()}
    names = {
        f"{block}_{number}{part}_{rest}"
        for block, parts in (("input_blocks", "012"), ("output_blocks", "012"), ("middle_block", " "))
        for number in range(1 if block == "input_blocks" else 0, 8)
        for part in (f"_{each}" if each.strip() else "" for each in parts)
        for rest in (
            *("in_layers_2", "out_layers_3", "emb_layers_1", "skip_connection", "op", "conv", "proj_in"),
            *(f"transformer_blocks_0_{name}" for name in ("attn1_to_q", "attn2_to_k", "ff_net_0_proj")),
        )
    }
    tensors = {}
    for name in sorted(names):
        layer = translated(name, per_block)
        if layer in shapes and not name.endswith("_1_conv"):
            down, up = matrices(shapes.pop(layer))
            tensors |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}
    file = write(tmp_path / "chalk.safetensors", tensors)

    notes = found(file, "demo:sdxl")

    assert notes == []
    assert num_applied(file, "sdxl") == len(tensors) / 2 > 40
    assert "fits no layer of the unet" in refusal(file, "demo:sd")


@pytest.mark.parametrize(
    ("lora", "checkpoint", "says"),
    [
        ("sdxl", "sd", "goes from 64 to 32, and the checkpoint's from 32 to 32"),
        ("sd", "sdxl", "goes from 32 to 32, and the checkpoint's from 64 to 32"),
        ("sd2", "sd", "goes from 48 to 32"),
        ("sd", "sd2", "and the checkpoint's from 48 to 32"),
    ],
)
def test_a_lora_of_another_kind_of_checkpoint_is_refused(
    lora: str, checkpoint: str, says: str, tmp_path: Path
) -> None:
    """diffusers fails on it too, but only once the checkpoint is loaded."""
    file = write(tmp_path / "chalk.safetensors", kohya(lora, layers_of(lora, "unet")))

    assert says in refusal(file, f"demo:{checkpoint}")
    with pytest.raises(RuntimeError, match="size mismatch"):
        num_applied(file, checkpoint)


def one_layer(kind: str = "sd") -> tuple[str, np.ndarray, np.ndarray]:
    """(path, A, B) of a layer of attention."""
    (component, name), *_ = layers_of(kind, "unet")
    return f"unet.{name}", *matrices(shapes_of(kind, component)[name])


PATH, DOWN, UP = one_layer()
KOHYA = f"lora_unet_{PATH.removeprefix('unet.').replace('.', '_')}"
TEXT_LAYER = "text_encoder_2.text_model.encoder.layers.0.self_attn.out_proj"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{KOHYA}.hada_w1_a": DOWN}, "it is a LoHa"),
        ({f"{PATH}.lora_magnitude_vector.weight": DOWN[0]}, "it is a DoRA"),
        ({f"{PATH}.lora_B.bias": DOWN[0]}, "its matrices have biases"),
        ({f"{KOHYA}.lokr_w1": DOWN, f"{KOHYA}.lokr_w2": UP}, "it is a LoKr"),
        ({f"{PATH}.lokr_w1": DOWN, f"{PATH}.lokr_w2": UP}, "it is a LoKr"),
        ({f"{KOHYA}.diff": DOWN}, "whole weights"),
        ({f"{KOHYA}.alpha": DOWN, f"{KOHYA}.strange": DOWN}, "not one of a LoRA"),
        ({f"{KOHYA}.lora_down.weight": DOWN}, "only one of its two matrices"),
        ({f"{PATH}.lora_A.weight": DOWN}, "only one of its two matrices"),
        ({f"{PATH}.lora_A.weight": DOWN, f"{PATH}.lora_B.weight": UP[:, :2]}, "have the shapes"),
        ({f"{PATH}.lora_A.weight": DOWN, f"{PATH}.lora_B.weight": UP, f"{PATH}.alpha": UP}, "not one of a"),
        ({"conv_in.weight": DOWN}, "not one of a LoRA"),
        ({"unet.far.off.lora_A.weight": DOWN, "unet.far.off.lora_B.weight": UP}, "no layer of the unet"),
        ({f"{PATH}.lora_A.weight": DOWN[:, :9], f"{PATH}.lora_B.weight": UP}, "goes from 9 to 32"),
        ({f"{PATH}.lora_A.weight": DOWN, f"{PATH}.lora_B.weight": UP[:9]}, "goes from 32 to 9"),
        (
            {f"{PATH}.lora_A.weight": DOWN.astype(np.int8), f"{PATH}.lora_B.weight": UP},
            f"its tensor {PATH}.lora_A.weight has the type I8; weights must be floating-point numbers",
        ),
        (kohya("sd", layers_of("sd", "text_encoder", ["q_proj"])), "reads only if out_proj is among"),
        (
            old_diffusers("sd", layers_of("sd", "text_encoder", ["v_proj"])),
            "rename them as text_encoder.LAYER.lora_linear_layer.down.weight",
        ),
        (
            peft("sd", layers_of("sd", "text_encoder", ["fc1"])),
            "reads only if q_proj, k_proj, v_proj or out_proj is among these layers",
        ),
    ],
)
def test_a_file_on_which_diffusers_fails_is_refused(tensors: Tensors, says: str, tmp_path: Path) -> None:
    """The message has the reason, which diffusers' own often lacks."""
    file = write(tmp_path / "chalk.safetensors", tensors)

    assert says in refusal(file, "demo:sd")
    with pytest.raises((ValueError, KeyError, IndexError, RuntimeError)):
        num_applied(file, "sd")


def test_a_lora_of_which_diffusers_reads_a_half_is_refused(tmp_path: Path) -> None:
    """It leaves out attention under kohya's names where out_proj is missing, and says nothing."""
    layers = layers_of("sd", "text_encoder", ["q_proj", "fc1"])
    file = write(tmp_path / "chalk.safetensors", kohya("sd", layers))

    assert "self_attn_q_proj, have names that diffusers reads only if out_proj" in refusal(file, "demo:sd")
    assert num_applied(file, "sd") == len(layers) / 2
    assert found(write(file, diffusers("sd", layers)), "demo:sd") == []


_CONFIG = {"unet.r": 4, "unet.lora_alpha": 8, "unet.target_modules": ["to_q"]}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "lora_adapter_metadata in its header is not JSON"),
        ("[]", "is not a JSON object"),
        (json.dumps({"r": 4}), "has no target_modules (unet)"),
        (json.dumps(_CONFIG | {"unet.r": "4"}), "has r '4', which is not a whole number"),
        (json.dumps(_CONFIG | {"unet.r": 9}), "has r 9, and the file a layer of rank 4"),
        (json.dumps(_CONFIG | {"unet.lora_alpha": None}), "has lora_alpha None"),
        (json.dumps(_CONFIG | {"unet.rank_pattern": 3}), "has a rank_pattern or alpha_pattern"),
        (json.dumps(_CONFIG | {"unet.use_dora": True}), "says that it has magnitudes"),
    ],
)
def test_a_lora_with_a_damaged_configuration_in_its_header_is_refused(
    config: str, says: str, tmp_path: Path
) -> None:
    """The message names the key of the header, and how to get rid of it."""
    tensors = {f"{PATH}.lora_A.weight": DOWN, f"{PATH}.lora_B.weight": UP}
    file = write(tmp_path / "chalk.safetensors", tensors, {"lora_adapter_metadata": config})

    message = refusal(file, "demo:sd")

    assert says in message
    assert "save the LoRA again with the pipeline's `save_lora_weights`" in message


def test_the_configuration_that_diffusers_writes_into_a_header_is_read(tmp_path: Path) -> None:
    """Not beside alphas of the file's own, of which diffusers takes one."""
    config = {"lora_adapter_metadata": json.dumps(_CONFIG)}
    tensors = {f"{PATH}.lora_A.weight": DOWN, f"{PATH}.lora_B.weight": UP}
    file = write(tmp_path / "chalk.safetensors", tensors, config)
    other = write(tmp_path / "other.safetensors", kohya("sd", layers_of("sd", "unet")[:1]), config)

    assert found(file, "demo:sd") == []
    assert num_applied(file, "sd") == 1
    assert "it has alphas, and lora_adapter_metadata" in refusal(other, "demo:sd")
    with pytest.raises(ValueError, match="Both `network_alphas` and `metadata`"):
        num_applied(other, "sd")


@pytest.mark.parametrize(
    "path",
    [
        PATH.removeprefix("unet."),
        f"base_model.model.{PATH.removeprefix('unet.')}",
        f"transformer.{PATH}",
        f"model.diffusion_model.{PATH}",
        TEXT_LAYER,
    ],
)
def test_a_file_that_diffusers_loads_to_no_effect_is_refused(path: str, tmp_path: Path) -> None:
    """diffusers only logs it, and the images would be those without a LoRA."""
    file = write(tmp_path / "chalk.safetensors", {f"{path}.lora_A.weight": DOWN, f"{path}.lora_B.weight": UP})

    assert "it fits no layer, and diffusers would load it to no effect" in refusal(file, "demo:sd")
    assert num_applied(file, "sd") == 0


def test_a_lora_for_a_text_encoder_that_the_refiner_does_not_have_is_refused(tmp_path: Path) -> None:
    """diffusers fails on it without saying why."""
    layers = [*layers_of("sdxl", "text_encoder"), *layers_of("sdxl-refiner", "unet")]
    tensors = kohya("sdxl", layers[:12]) | kohya("sdxl-refiner", layers[12:])
    file = write(tmp_path / "chalk.safetensors", tensors)

    assert "a text_encoder, which the checkpoint does not have" in refusal(file, "demo:sdxl-refiner")
    with pytest.raises(AttributeError):
        num_applied(file, "sdxl-refiner")


def test_what_diffusers_leaves_out_of_a_lora_is_noted(tmp_path: Path) -> None:
    """Layers of another checkpoint among others, and the scales of a DoRA in kohya's form."""
    some = kohya("sd", layers_of("sd", "unet")[:3])
    strange = {"lora_unet_far_off.lora_down.weight": DOWN, "lora_unet_far_off.lora_up.weight": UP}
    scales = {f"{KOHYA}.dora_scale": np.ones((32, 1), np.float32)}
    file = write(tmp_path / "chalk.safetensors", some | strange | scales)

    (note,) = found(file, "demo:sd")

    assert "leaves out 1 of its 4 layers, which the checkpoint does not have (far_off)" in note
    assert "leaves out its DoRA scales" in note
    assert num_applied(file, "sd") == 3


def test_many_loras_of_which_something_is_left_out_have_one_note_for_the_rest(tmp_path: Path) -> None:
    """A plan of a thousand would be a thousand lines."""
    strange = {"lora_unet_far_off.lora_down.weight": DOWN, "lora_unet_far_off.lora_up.weight": UP}
    tensors = kohya("sd", layers_of("sd", "unet")[:1]) | strange
    file = write(tmp_path / "chalk.safetensors", tensors)
    loras = {f"chalk-{number}": str(file) for number in range(MAX_NOTES + 2)}
    model = ModelSpec.model_validate({"checkpoint": "demo:sd", "loras": loras})

    files, notes = find_loras("m", model, read_card("m", model), Stores())

    assert (len(files), len(notes)) == (MAX_NOTES + 2, MAX_NOTES + 1)
    assert notes[-1] == "models.m.loras: diffusers leaves out a part of 2 more LoRAs too"


def test_a_lora_of_an_encoder_that_is_the_same_fits_another_family(tmp_path: Path) -> None:
    """XL's first text encoder is Stable Diffusion's."""
    file = write(tmp_path / "chalk.safetensors", kohya("sd", layers_of("sd", "text_encoder")))

    assert found(file, "demo:sdxl") == []
    assert num_applied(file, "sdxl") == 12


def test_a_checkpoint_whose_pipelines_load_no_loras_is_told_so(tmp_path: Path) -> None:
    file = write(tmp_path / "chalk.safetensors", kohya("sd", layers_of("sd", "unet")))

    with pytest.raises(SpecError, match=r"models.m.loras: diffusers loads no LoRAs for a .* of variation"):
        found(file, "demo:variation")


def test_a_lora_for_xl_is_called_so_by_its_width(tmp_path: Path) -> None:
    """Published checkpoints have widths by which a person knows them."""
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    checkpoint = paper_checkpoint(tmp_path / "sd15")
    weights = {f"{layer}.weight": np.zeros((640, 768), np.float16)}
    save_file(weights, checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    down, up = matrices((640, 2048))
    file = write(
        tmp_path / "xl.safetensors",
        {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up},
    )

    assert "it was made for XL: its layer" in refusal(file, str(checkpoint))


def test_a_lora_is_compared_with_a_checkpoint_on_the_hub_before_its_download(
    tmp_path: Path, use_hub: Callable[[str], None], hub_cache: Path
) -> None:
    """Only the headers of its weights are read."""
    files_on_hub.cache_clear()
    fitting = write(tmp_path / "fitting.safetensors", kohya("sd", layers_of("sd", "unet")))
    other = write(tmp_path / "other.safetensors", kohya("sdxl", layers_of("sdxl", "unet")))

    with serve_hub({"small/sd": demo("sd")}) as (address, _):
        use_hub(address)
        notes = found(fitting, "small/sd")
        says = refusal(other, "small/sd")

    assert notes == []
    assert "it was made for another kind of checkpoint: its layer" in says
    assert not [*hub_cache.rglob("*.safetensors")]


@pytest.mark.parametrize(
    ("kind", "other"), [("sd1", "xl"), ("sd2", "sd1"), ("xl", "sd1"), ("xl-refiner", "xl")]
)
def test_a_single_file_is_compared_by_its_own_names(kind: str, other: str, tmp_path: Path) -> None:
    """They are those of the first code, and nothing is converted for the comparison."""
    pipelines = {name: small_pipeline(name) for name in (kind, other)}
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(tmp_path / name)
    checkpoint = single_file(pipelines[kind], tmp_path / "single.safetensors")
    matrices = [name for name, shape in shapes_of(tmp_path / kind, "unet").items() if len(shape) > 1]
    fitting = peft(tmp_path / kind, [("unet", name) for name in matrices])
    another = peft(tmp_path / other, layers_of(tmp_path / other, "unet"))

    assert found(write(tmp_path / "fitting.safetensors", fitting), str(checkpoint)) == []
    says = refusal(write(tmp_path / "another.safetensors", another), str(checkpoint))
    assert "another kind of checkpoint" in says
    assert len(matrices) > 50
