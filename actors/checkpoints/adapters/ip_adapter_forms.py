"""The forms of IP-Adapters, told from their tensors' names and shapes, as diffusers 0.42.1 reads them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from actors.checkpoints.adapters.checkpoint_layers import Layers
from actors.checkpoints.adapters.lora_check import MADE_FOR
from actors.checkpoints.adapters.lora_layers import Shape, Shapes
from schemas.wording.amounts import counted

NUM_TOKENS = 4
"""The number of tokens that the plain form gives of a picture."""
NUM_LAYERS = 4
"""The number of layers of a resampler: diffusers 0.42.1 has no other."""
_FACE_ID = (
    "it is an IP-Adapter FaceID, which reads embeddings of the library insightface and not pictures; choose "
    "one that shows faces from pictures, such as ip-adapter-plus-face"
)
_CHOOSE = "name the adapter's file for this kind of checkpoint"
_CROSS_ATTENTION = re.compile(
    r"(down|up|mid)_blocks?_(?:(\d+)_)?attentions_(\d+)_transformer_blocks_(\d+)_attn2_to_k"
)
_SIDES = ("down", "up", "mid")
"""The order in which diffusers 0.42.1 goes through a UNet's layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IpAdapterForm:
    """What an IP-Adapter's file tells about it."""

    embedding_key: str
    """The key of the image encoder's configuration that says how wide its embeddings are."""
    embedding_width: int
    """The width of the embeddings that the adapter reads."""
    token_width: int
    """The width of the tokens that the adapter gives to the UNet."""
    layers: tuple[tuple[Shape, Shape], ...]
    """For each layer of the UNet that reads text, in diffusers' order, the shapes of keys and values."""


def form_of(shapes: Shapes) -> IpAdapterForm:
    """The form of the adapter with these tensors; ValueError says why diffusers cannot use the file."""
    parts: dict[str, dict[str, Shape]] = {"image_proj": {}, "ip_adapter": {}}
    for key, shape in shapes.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise ValueError(f"it has a tensor that is not one of an IP-Adapter ({key:.100})")
        parts[part][name] = shape
    if any("_lora." in name for name in parts["ip_adapter"]):
        raise ValueError(_FACE_ID)
    embedding_key, embedding_width, token_width = _projection(parts["image_proj"])
    return IpAdapterForm(
        embedding_key=embedding_key,
        embedding_width=embedding_width,
        token_width=token_width,
        layers=_layers(parts["ip_adapter"]),
    )


def _projection(shapes: Shapes) -> tuple[str, int, int]:
    """(key of the encoder's configuration, width of embeddings, width of tokens) of a projection."""
    if "proj.weight" in shapes:
        width = _shape(shapes, "norm.weight", 1)[0]
        embedding = _shape(shapes, "proj.weight", 2)[1]
        return _checked(
            shapes,
            ("projection_dim", embedding, width),
            {**_linear("proj", NUM_TOKENS * width, embedding), **_norm("norm", width)},
        )
    if "proj.3.weight" in shapes:
        width, hidden = _shape(shapes, "proj.3.weight", 1)[0], _shape(shapes, "proj.0.weight", 2)[0]
        expected = _linear("proj.0", hidden, hidden) | _linear("proj.2", width, hidden)
        return _checked(shapes, ("hidden_size", hidden, width), expected | _norm("proj.3", width))
    if "perceiver_resampler.proj_in.weight" in shapes or "norm.weight" in shapes:
        raise ValueError(_FACE_ID)
    if "latents" in shapes:
        return _resampler(shapes)
    raise ValueError(
        "it has none of the projections of IP-Adapters for Stable Diffusion 1.5 and XL "
        f"({counted(len(shapes), 'tensor')} of image_proj)"
    )


def _resampler(shapes: Shapes) -> tuple[str, int, int]:
    hidden, embedding = _shape(shapes, "proj_in.weight", 2)
    width = _shape(shapes, "proj_out.weight", 2)[0]
    expected: dict[str, Shape] = {"latents": (1, _shape(shapes, "latents", 3)[1], hidden)}
    expected |= _linear("proj_in", hidden, embedding) | _linear("proj_out", width, hidden)
    expected |= _norm("norm_out", width)
    inner = _shape(shapes, "layers.0.0.to_q.weight", 2)[0]
    for number in range(NUM_LAYERS):
        attention, feed_forward = f"layers.{number}.0", f"layers.{number}.1"
        wide = _shape(shapes, f"{feed_forward}.1.weight", 2)[0]
        expected |= _norm(f"{attention}.norm1", hidden) | _norm(f"{attention}.norm2", hidden)
        expected |= _norm(f"{feed_forward}.0", hidden)
        expected |= {
            f"{attention}.to_q.weight": (inner, hidden),
            f"{attention}.to_kv.weight": (2 * inner, hidden),
            f"{attention}.to_out.weight": (hidden, inner),
            f"{feed_forward}.1.weight": (wide, hidden),
            f"{feed_forward}.3.weight": (hidden, wide),
        }
    return _checked(shapes, ("hidden_size", embedding, width), expected)


def _checked(shapes: Shapes, told: tuple[str, int, int], expected: Shapes) -> tuple[str, int, int]:
    """What a projection tells; ValueError if its tensors are not exactly these."""
    for name in sorted(shapes.keys() | expected.keys()):
        if name not in expected:
            raise ValueError(f"it has a tensor that diffusers does not read (image_proj.{name:.100})")
        if _shape(shapes, name, len(expected[name])) != expected[name]:
            raise ValueError(
                f"it is damaged: image_proj.{name} has the shape {shapes[name]}, not {expected[name]}"
            )
    return told


def _shape(shapes: Shapes, name: str, dimensions: int) -> Shape:
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"it is damaged: image_proj.{name} is missing")
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"it is damaged: image_proj.{name} has the shape {shape}")
    return shape


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _layers(shapes: Shapes) -> tuple[tuple[Shape, Shape], ...]:
    numbers = sorted({int(name.partition(".")[0]) for name in shapes if name.partition(".")[0].isdecimal()})
    # The original code numbers the layers of self-attention too, which an adapter does not change.
    if not numbers or numbers != [*range(1, 2 * len(numbers), 2)]:
        raise ValueError("it is damaged: its layers are not numbered 1, 3, 5 and so on")
    layers = []
    for number in numbers:
        keys, values = (shapes.get(f"{number}.to_{kind}_ip.weight") for kind in "kv")
        if keys is None or values is None:
            raise ValueError(f"it is damaged: its layer {number} has no keys or no values")
        layers.append((keys, values))
    return tuple(layers)


def misfit(form: IpAdapterForm, unet: Layers | None) -> str:
    """How an IP-Adapter differs from what the checkpoint's UNet needs; empty if it fits.

    `unet`: the shapes of its weights by layer; None if they are not known here, which is no misfit.
    """
    if unet is None:
        return ""
    own = _cross_attention(unet)
    for number, (shapes, needed) in enumerate(zip(form.layers, own, strict=False)):
        if (found := next((shape for shape in shapes if shape != needed), None)) is not None:
            kind = MADE_FOR.get(found[-1]) if found and found[-1] != needed[-1] else None
            made_for = f"it was made for {kind or 'another kind of checkpoint'}"
            return f"{made_for}: its layer {2 * number + 1} is {found}, the checkpoint's {needed}; {_CHOOSE}"
    if len(form.layers) != len(own):
        return (
            f"it was made for another kind of checkpoint: it has {counted(len(form.layers), 'layer')}, and "
            f"the checkpoint's UNet {len(own)} that read text; {_CHOOSE}"
        )
    if own and form.token_width != own[0][-1]:
        return f"its tokens are {form.token_width} wide, and the checkpoint reads {own[0][-1]}; {_CHOOSE}"
    return ""


def _cross_attention(unet: Mapping[str, Shape]) -> list[Shape]:
    """The shapes of the keys of all layers that read text, in diffusers' order."""
    layers = []
    for name, shape in unet.items():
        if match := _CROSS_ATTENTION.fullmatch(name):
            side, *numbers = match.groups()
            layers.append((_SIDES.index(side), [int(number or 0) for number in numbers], shape))
    return [shape for _, _, shape in sorted(layers)]
