"""The configurations of a single file's components, derived from the shapes of its tensors.

Single files have the keys of CompVis' latent-diffusion (`ldm`). Widths and depths are those of the tensors.
What no shape tells, such as the width of an attention head, is as in the published models.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from actors.checkpoints.single_files.safetensors_headers import Tensor

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
REFINER_OPEN_CLIP = "conditioner.embedders.0.model."
"""What the keys of a component begin with."""

HEAD_WIDTH = 64
"""The channels of an attention head in every published model, except Stable Diffusion 1.x's UNet."""
HEADS_OF_1 = 8
"""The heads of Stable Diffusion 1.x's UNet, at every width."""
NUM_GROUPS = 32
"""The groups of a group norm."""
TIME_ID_WIDTH = 256
"""How many numbers XL's UNet makes of each size and score that it is told."""
LAST_LAYER_OF_2 = 23
"""Stable Diffusion 2 was trained on the penultimate layer of 24, and diffusers leaves the last one out."""

Tensors = Mapping[str, Tensor]
Config = dict[str, Any]


def shape_of(tensors: Tensors, key: str, num_sides: int | None = None) -> tuple[int, ...]:
    """A tensor's shape; ValueError if there is none, or if it has another number of sides."""
    tensor = tensors.get(key)
    if tensor is None:
        raise ValueError(f"it has no {key}")
    if (num_sides is not None and len(tensor.shape) != num_sides) or 0 in tensor.shape or not tensor.shape:
        raise ValueError(f"its {key} has the shape {list(tensor.shape)}")
    return tensor.shape


def in_channels(tensors: Tensors) -> int:
    """The channels that the UNet takes."""
    return shape_of(tensors, f"{UNET}input_blocks.0.0.weight", 4)[1]


def cross_attention_dim(tensors: Tensors) -> int:
    """The width of the texts that the UNet reads."""
    keys = (key for key in tensors if key.startswith(UNET) and key.endswith(".attn2.to_k.weight"))
    key = next(keys, f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    return shape_of(tensors, key, 2)[1]


@dataclass(slots=True)
class _Level:
    """The layers of the UNet that work at one size."""

    width: int
    num_layers: int = 0
    depths: tuple[int, ...] = ()
    """The number of transformer blocks after each of its layers; empty where there are none."""


def unet_config(tensors: Tensors, *, heads: int | None) -> Config:
    """The UNet's configuration, without what XL adds; `heads`: None if a head's width is fixed instead."""
    levels = _levels(tensors)
    mid_depth = _depth(tensors, f"{UNET}middle_block.1")
    depths = [level.depths[0] if level.depths else 1 for level in levels]
    if levels[-1].depths and depths[-1] != mid_depth:
        raise ValueError(f"its middle has {mid_depth} transformer blocks, and the level before {depths[-1]}")
    depths[-1] = mid_depth  # diffusers gives the middle the depth of the last level.
    widths = [level.width for level in levels]
    down = ["CrossAttnDownBlock2D" if level.depths else "DownBlock2D" for level in levels]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": in_channels(tensors),
        "out_channels": shape_of(tensors, f"{UNET}out.2.weight", 4)[0],
        "block_out_channels": widths,
        "layers_per_block": levels[0].num_layers,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "transformer_layers_per_block": depths,
        "cross_attention_dim": cross_attention_dim(tensors),
        "attention_head_dim": heads or [max(1, width // HEAD_WIDTH) for width in widths],
        "use_linear_projection": len(shape_of(tensors, f"{UNET}middle_block.1.proj_in.weight")) == 2,
        "norm_num_groups": gcd(NUM_GROUPS, *widths),
    }


def _levels(tensors: Tensors) -> list[_Level]:
    """The UNet's levels, the largest size first; ValueError if diffusers has no such UNet."""
    levels = [_Level(shape_of(tensors, f"{UNET}input_blocks.0.0.weight", 4)[0])]
    index = 1
    while any(
        f"{UNET}input_blocks.{index}.0.{name}" in tensors for name in ("op.weight", "in_layers.2.weight")
    ):
        block, level = f"{UNET}input_blocks.{index}", levels[-1]
        if f"{block}.0.op.weight" in tensors:
            levels.append(_Level(level.width))
        else:
            level.width = shape_of(tensors, f"{block}.0.in_layers.2.weight", 4)[0]
            level.num_layers += 1
            if depth := _depth(tensors, f"{block}.1"):
                level.depths += (depth,)
        index += 1
    for level in levels:
        if level.num_layers != levels[0].num_layers or not level.num_layers:
            raise ValueError(
                f"its UNet has {level.num_layers} layers at a level and {levels[0].num_layers} at another"
            )
        if level.depths and level.depths != level.depths[:1] * level.num_layers:
            raise ValueError(f"the layers of a level of its UNet have {level.depths} transformer blocks")
    num_ups = _count(tensors, rf"{re.escape(UNET)}output_blocks\.(\d+)\.")
    if num_ups != len(levels) * (levels[0].num_layers + 1):
        raise ValueError(f"its UNet has {index} layers on the way down and {num_ups} on the way up")
    return levels


def _depth(tensors: Tensors, block: str) -> int:
    return _count(tensors, rf"{re.escape(block)}\.transformer_blocks\.(\d+)\.")


def _count(tensors: Tensors, pattern: str) -> int:
    """How many numbers the pattern's group has in the keys."""
    numbered = re.compile(pattern)
    return len({match[1] for match in map(numbered.match, tensors) if match})


def size_aware_config(tensors: Tensors, *, pooled_width: int, num_time_ids: int) -> Config:
    """What XL adds to its UNet's configuration: it also sees the pooled prompt, and sizes and scores."""
    width = shape_of(tensors, f"{UNET}label_emb.0.0.weight", 2)[1]
    time_id_width, rest = divmod(width - pooled_width, num_time_ids)
    if rest or time_id_width < 2:
        raise ValueError(
            f"its UNet is told {width} numbers beside the prompt, which is not {num_time_ids} sizes after a "
            f"pooled prompt of {pooled_width}"
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time_id_width,
        "projection_class_embeddings_input_dim": width,
    }


def vae_config(tensors: Tensors, scaling_factor: float) -> Config:
    """The VAE's configuration."""
    num_levels = _count(tensors, rf"{re.escape(VAE)}encoder\.down\.(\d+)\.block\.")
    keys = [f"{VAE}encoder.down.{level}.block.0.conv1.weight" for level in range(num_levels)]
    widths = [shape_of(tensors, key, 4)[0] for key in keys]
    if not widths:
        raise ValueError("its VAE has no levels")
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shape_of(tensors, f"{VAE}encoder.conv_in.weight", 4)[1],
        "out_channels": shape_of(tensors, f"{VAE}decoder.conv_out.weight", 4)[0],
        "latent_channels": shape_of(tensors, f"{VAE}decoder.conv_in.weight", 4)[1],
        "block_out_channels": widths,
        "layers_per_block": _count(tensors, rf"{re.escape(VAE)}encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "norm_num_groups": gcd(NUM_GROUPS, *widths),
        "scaling_factor": scaling_factor,
    }


def clip_config(tensors: Tensors, prefix: str) -> Config:
    """The configuration of a text encoder of OpenAI's CLIP."""
    num_tokens, width = shape_of(tensors, f"{prefix}embeddings.token_embedding.weight", 2)
    return {
        **_text_config(
            num_tokens, width, shape_of(tensors, f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)[0]
        ),
        "architectures": ["CLIPTextModel"],
        "max_position_embeddings": shape_of(tensors, f"{prefix}embeddings.position_embedding.weight", 2)[0],
        "num_hidden_layers": _count(tensors, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."),
        "hidden_act": "quick_gelu",
        "projection_dim": width,
    }


def open_clip_config(tensors: Tensors, prefix: str) -> Config:
    """The configuration of a text encoder of OpenCLIP: Stable Diffusion 2's, or XL's with its projection."""
    num_tokens, width = shape_of(tensors, f"{prefix}token_embedding.weight", 2)
    blocks = f"{prefix}transformer.resblocks."
    num_layers = _count(tensors, rf"{re.escape(blocks)}(\d+)\.")
    is_of_2 = prefix == OPEN_CLIP
    return {
        **_text_config(num_tokens, width, shape_of(tensors, f"{blocks}0.mlp.c_fc.weight", 2)[0]),
        "architectures": ["CLIPTextModel" if is_of_2 else "CLIPTextModelWithProjection"],
        "max_position_embeddings": shape_of(tensors, f"{prefix}positional_embedding", 2)[0],
        "num_hidden_layers": min(num_layers, LAST_LAYER_OF_2) if is_of_2 else num_layers,
        "hidden_act": "gelu",
        "projection_dim": width if is_of_2 else shape_of(tensors, f"{prefix}text_projection", 2)[1],
    }


def _text_config(num_tokens: int, width: int, intermediate: int) -> Config:
    return {
        "model_type": "clip_text_model",
        "vocab_size": num_tokens,
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
