"""Writes LoRAs in each form in which they are published, for any checkpoint's layers, without torch."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.support.checkpoints import demo

Tensors = Mapping[str, np.ndarray]
Layer = tuple[str, str]
"""A component and the name of one of its layers, such as `unet` and `mid_block.resnets.0.conv1`."""
Kind = str | Path
"""A demo checkpoint, or the folder of another one."""
RANK = 4
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def _folder(kind: Kind) -> Path:
    return demo(kind) if isinstance(kind, str) else kind


def shapes_of(kind: Kind, component: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of a demo checkpoint's component, by layer."""
    shapes = {}
    for file in (_folder(kind) / component).glob("*.safetensors"):
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name.endswith(".weight"):
                    shapes[name.removesuffix(".weight")] = tuple(opened.get_slice(name).get_shape())
    return shapes


def layers_of(kind: Kind, component: str, endings: Iterable[str] = (*_ATTENTION, *_TEXT)) -> list[Layer]:
    """A component's layers whose names end so."""
    return [(component, name) for name in shapes_of(kind, component) if name.endswith(tuple(endings))]


def matrices(shape: tuple[int, ...], rank: int = RANK) -> tuple[np.ndarray, np.ndarray]:
    """Random matrices A and B for a layer whose weight has this shape."""
    random = np.random.default_rng(len(shape))
    down = random.standard_normal((rank, *shape[1:])).astype(np.float32)
    up = random.standard_normal((shape[0], rank, *([1, 1] if len(shape) == 4 else []))).astype(np.float32)
    return down, up


def in_form(kind: Kind, layers: Iterable[Layer], names: Callable[[Layer], tuple[str, str]]) -> Tensors:
    """A LoRA of these layers; `names` gives the names of the two matrices of a layer."""
    tensors = {}
    for component, name in layers:
        down, up = names((component, name))
        tensors[down], tensors[up] = matrices(shapes_of(kind, component)[name])
    return tensors


def kohya(kind: Kind, layers: Iterable[Layer]) -> Tensors:
    """`lora_unet_mid_block_...lora_down.weight`, with alphas."""
    xl = (_folder(kind) / "text_encoder_2").is_dir()
    prefixes = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_text_model_" if xl else "lora_te_text_model_",
        "text_encoder_2": "lora_te2_text_model_",
    }

    def names(layer: Layer) -> tuple[str, str]:
        name = layer[1].removeprefix("text_model.").replace(".", "_")
        return f"{prefixes[layer[0]]}{name}.lora_down.weight", f"{prefixes[layer[0]]}{name}.lora_up.weight"

    tensors = in_form(kind, layers, names)
    alphas = {
        name.replace("lora_down.weight", "alpha"): np.float32(2.0).reshape(())
        for name in tensors
        if name.endswith("lora_down.weight")
    }
    return {**tensors, **alphas}


def peft(kind: Kind, layers: Iterable[Layer]) -> Tensors:
    """`unet.mid_block...lora_A.weight`, as diffusers saves a LoRA now."""
    return in_form(
        kind, layers, lambda layer: (f"{_path(layer)}.lora_A.weight", f"{_path(layer)}.lora_B.weight")
    )


def diffusers(kind: Kind, layers: Iterable[Layer]) -> Tensors:
    """`unet.mid_block...lora.down.weight`, and `lora_linear_layer` in text encoders."""

    def names(layer: Layer) -> tuple[str, str]:
        middle = "lora" if layer[0] == "unet" else "lora_linear_layer"
        return f"{_path(layer)}.{middle}.down.weight", f"{_path(layer)}.{middle}.up.weight"

    return in_form(kind, layers, names)


def old_diffusers(kind: Kind, layers: Iterable[Layer]) -> Tensors:
    """`unet.mid_block...attn1.processor.to_q_lora.down.weight`, for attention alone."""
    new_names = {
        "q_proj": "to_q",
        "k_proj": "to_k",
        "v_proj": "to_v",
        "out_proj": "to_out",
        "to_out.0": "to_out",
    }

    def names(layer: Layer) -> tuple[str, str]:
        ending = next((new for new in new_names if layer[1].endswith(f".{new}")), layer[1].rpartition(".")[2])
        block = _path(layer).removesuffix(f".{ending}")
        processor = ".processor" if layer[0] == "unet" else ""
        stem = f"{block}{processor}.{new_names.get(ending, ending)}_lora"
        return f"{stem}.down.weight", f"{stem}.up.weight"

    return in_form(kind, layers, names)


def _path(layer: Layer) -> str:
    component, name = layer
    if component == "unet":
        return f"unet.{name}"
    return f"{component}.text_model.{name.removeprefix('text_model.')}"


def write(file: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """Write a file of safetensors, and return it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.array(tensor) for name, tensor in tensors.items()}, file, metadata)
    return file
