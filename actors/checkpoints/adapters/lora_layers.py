"""The layers that a LoRA changes, by the names and shapes of its tensors, as diffusers 0.42.1 reads them.

A layer's name has underscores for dots here, because kohya's names have nothing else.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

TEXT_MODEL = "text_model_"
"""How layers of a text encoder may begin. transformers 5 leaves it out for some encoders."""
_KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
_DIFFUSERS_BLOCK = re.compile(r"lora_unet_(?:down|mid|up)_block")
_KOHYA_ENDING = re.compile(r"lora_(down|up)\.weight|alpha")
_KEY = re.compile(
    r"(?P<layer>.+?)(?P<old>_lora|\.lora|\.lora_linear_layer)\.(?P<role>down|up)\.weight"
    r"|(?P<peft>.+?)\.lora_(?P<factor>A|B)\.weight"
)
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The layers of attention of a text encoder."""
_OLD_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

_OTHER_FORMS = {
    r"\.hada_": "it is a LoHa",
    r"\.lokr_": "it is a LoKr, which diffusers loads for models of other kinds only",
    r"\.b?oft_": "it is an OFT",
    r"\.lora_mid\.": "its convolutions are decomposed twice (Tucker)",
    r"\.diff(?:_b)?$": "it has differences of whole weights",
    r"\.[wb]_norm$": "it changes norms",
    r"\.on_input$": "it is an IA3",
    r"\.lora_magnitude_vector": "it is a DoRA, whose magnitudes cannot differ by row in a batch",
    r"\.lora_[AB]\.bias$": "its matrices have biases, which cannot differ by row in a batch",
    r"^bundle_emb": "it has embeddings of new tokens, which are files of their own for diffusers",
}
"""By a pattern in a tensor's name: forms of adapters that people call LoRAs, and that diffusers does not load
or rows of one batch cannot have."""
_OTHER_FORM = re.compile("|".join(f"({pattern})" for pattern in _OTHER_FORMS))
_WAY_OUT = "train or convert it as a plain LoRA"


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """One layer that a LoRA changes."""

    component: str
    """`unet`, `text_encoder` or `text_encoder_2`; empty if diffusers would not look at the layer."""
    name: str
    """The layer's name in the component, with underscores."""
    down: Shape
    """The shape of the matrix A: (rank, in), and for a convolution (rank, in, height, width)."""
    up: Shape
    """The shape of the matrix B: (out, rank), and for a convolution (out, rank, 1, 1)."""


def lora_layers(shapes: Shapes, layers_per_block: int | None) -> list[LoraLayer]:
    """The layers that a file with these tensors changes; ValueError says why diffusers cannot load the file.

    `layers_per_block`: that of XL's UNet, for which diffusers translates the block names of the first Stable
    Diffusion code; None for other checkpoints.
    """
    shapes = {key: shape for key, shape in shapes.items() if "dora_scale" not in key}
    if not shapes:
        raise ValueError("it has no tensors")
    for key in shapes:
        if match := _OTHER_FORM.search(key):
            form = [*_OTHER_FORMS.values()][(match.lastindex or 1) - 1]
            raise ValueError(f"{form} ({key:.100}); {_WAY_OUT}")
    prefixes = tuple(_KOHYA)
    is_kohya = all(key.startswith(prefixes) for key in shapes)
    factors = _kohya_factors(shapes, layers_per_block) if is_kohya else _factors(shapes)
    pairs: dict[tuple[str, str], dict[str, Shape]] = {}
    forms: dict[str, dict[str, str]] = {}
    for factor in factors:
        pairs.setdefault((factor.component, factor.layer), {})[factor.role] = factor.shape
        forms.setdefault(factor.component, {})[factor.layer] = factor.form
    for component in forms.keys() & {"text_encoder", "text_encoder_2"}:
        _refuse_unread(component, forms[component])
    return [_layer(component, name, pair) for (component, name), pair in pairs.items()]


def _layer(component: str, name: str, pair: Mapping[str, Shape]) -> LoraLayer:
    if len(pair) < 2:
        raise ValueError(f"it is damaged: {name:.100} has only one of its two matrices")
    down, up = pair["down"], pair["up"]
    if min(len(down), len(up)) < 2 or down[0] != up[1] or 0 in (*down, *up):
        raise ValueError(f"it is damaged: the matrices of {name:.100} have the shapes {down} and {up}")
    return LoraLayer(component, name, down, up)


class _Factor(NamedTuple):
    """A matrix of a LoRA."""

    component: str
    layer: str
    role: str
    """`down` or `up`."""
    shape: Shape
    form: str
    """How its name says what it is: one of the forms below."""


_OLD, _PLAIN, _LINEAR, _PEFT = "_lora", ".lora", ".lora_linear_layer", ".lora_A"


def _refuse_unread(encoder: str, forms: Mapping[str, str]) -> None:
    """Raise ValueError for layers of a text encoder that diffusers 0.42.1 does not read in their form.

    It guesses the form of all from a few of them (`convert_state_dict_to_diffusers`), and then fails, or
    leaves the others out. `forms`: that of each layer.
    """
    old = [name for name in forms if forms[name] == _OLD]
    has_out = any(name.endswith("out_proj") for name in old)
    reads_peft = any(forms[name] == _PEFT and name.endswith(_ATTENTION) for name in forms)
    unread = "" if has_out else next(iter(old), "")
    if not unread and not has_out and not reads_peft and _LINEAR not in forms.values():
        unread = next(iter(forms))
    if unread:
        needed = "q_proj, k_proj, v_proj or out_proj" if forms[unread] == _PEFT else "out_proj"
        raise ValueError(
            f"its layers of the {encoder}, such as {unread:.100}, have names that diffusers reads only if "
            f"{needed} is among these layers; rename them as {encoder}.LAYER{_LINEAR}.down.weight and "
            f"{encoder}.LAYER{_LINEAR}.up.weight"
        )


def _kohya_factors(shapes: Shapes, layers_per_block: int | None) -> Iterator[_Factor]:
    has_diffusers_blocks = any(map(_DIFFUSERS_BLOCK.match, shapes))
    for key, shape in shapes.items():
        # `lora_unet_...` ends with its second underscore.
        prefix = key[: key.index("_", len("lora_")) + 1]
        layer, _, ending = key[len(prefix) :].partition(".")
        match = _KOHYA_ENDING.fullmatch(ending)
        if match is None:
            raise ValueError(f"it has a tensor that is not one of a LoRA ({key:.100}); {_WAY_OUT}")
        if match[1] is None:
            continue
        form = _PLAIN
        if prefix != "lora_unet_":
            layer = layer.removeprefix(TEXT_MODEL)
            form = _OLD if layer.endswith(_ATTENTION) else _LINEAR if "mlp" in layer else _PLAIN
        elif layers_per_block is not None and _FIRST_CODE.match(layer):
            if has_diffusers_blocks:
                continue  # diffusers drops these then.
            layer = translated(layer, layers_per_block)
        yield _Factor(_KOHYA[prefix], layer, match[1], shape, form)


def _factors(shapes: Shapes) -> Iterator[_Factor]:
    for key, shape in shapes.items():
        if "lora" not in key:
            raise ValueError(f"it has a tensor that is not one of a LoRA ({key:.100}); {_WAY_OUT}")
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"it has a tensor that diffusers does not read ({key:.100}); {_WAY_OUT}")
        path = (match["layer"] or match["peft"]).replace(".processor.", ".")
        role = match["role"] or {"A": "down", "B": "up"}[match["factor"]]
        form = match["old"] or _PEFT
        component, _, name = path.partition(".")
        if component not in _COMPONENTS:
            yield _Factor("", path.replace(".", "_"), role, shape, form)
            continue
        if form == _OLD:
            name = _new_name(component, name)
        flat = name.replace(".", "_")
        layer = flat if component == "unet" else flat.removeprefix(TEXT_MODEL)
        yield _Factor(component, layer, role, shape, form)


def _new_name(component: str, name: str) -> str:
    """The name of a layer of attention that has its old name, such as `attn1.to_out` for `attn1.to_out.0`."""
    if component == "unet":
        return f"{name}.0" if name.endswith("to_out") else name
    block, _, layer = name.rpartition(".")
    return f"{block}.{_OLD_NAMES.get(layer, layer)}"


_FIRST_CODE = re.compile(r"(?:input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_\d")
"""How the names of layers begin in the first code of Stable Diffusion."""
_KINDS = ("resnets", "attentions", "upsamplers")
_IN_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_BLOCK = re.compile(r"(input_blocks|output_blocks|middle_block)_(\d+)_(?:(\d+)_)?(.+)")


def translated(name: str, layers_per_block: int) -> str:
    """A layer's name in diffusers, from its name in the first code of Stable Diffusion."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match = _BLOCK.fullmatch(name)
    if match is None:
        return name
    side, number, rest = match[1], int(match[2]), _IN_RESNET.get(match[4], match[4])
    if side == "middle_block":
        # Nothing is numbered within its three parts.
        rest = name.removeprefix(f"middle_block_{number}_")
        part = {0: "resnets_0", 1: "attentions_0", 2: "resnets_1"}.get(number, f"none_{number}")
        return f"mid_block_{part}_{_IN_RESNET.get(rest, rest)}"
    kind = _KINDS[min(int(match[3] or 0), 2)]
    if side == "input_blocks":
        block, index = divmod(number - 1, layers_per_block + 1)
        if rest == "op":
            return f"down_blocks_{block}_downsamplers_0_conv"
        return f"down_blocks_{block}_{kind}_{index}_{rest}"
    block, index = divmod(number, layers_per_block + 1)
    # Behind a block without attention, the upsampler has the attention's number.
    if kind == "upsamplers" or (kind, rest) == ("attentions", "conv"):
        return f"up_blocks_{block}_upsamplers_0_{rest}"
    return f"up_blocks_{block}_{kind}_{index}_{rest}"
