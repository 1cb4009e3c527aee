"""Checkpoints as single files, with the published keys: diffusers' conversion the other way."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]

_UNET_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "conv_in": "input_blocks.0.0",
}
_RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION_NAMES = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def single_file(
    pipeline: Any, path: Path, *, marks: tuple[str, ...] = (), dtype: torch.dtype | None = None
) -> Path:
    """Save a pipeline of Stable Diffusion as one file; `marks`: names of empty tensors, such as v_pred."""
    state = single_file_state(pipeline)
    if dtype:
        state = {key: tensor.to(dtype) for key, tensor in state.items()}
    state |= {mark: torch.zeros(0) for mark in marks}
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
    return path


def single_file_state(pipeline: Any) -> State:
    """The weights of a pipeline under the keys of a single file."""
    state = _prefixed("model.diffusion_model.", _unet(pipeline.unet))
    state |= _prefixed("first_stage_model.", _vae(pipeline.vae))
    first, second = pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)
    if second is not None:
        number = 0 if first is None else 1
        state |= _prefixed(f"conditioner.embedders.{number}.model.", _open_clip(second))
        if first is not None:
            state |= _prefixed("conditioner.embedders.0.transformer.text_model.", _clip(first))
    elif first.config.hidden_act == "gelu":
        state |= _prefixed("cond_stage_model.model.", _open_clip(first))
    else:
        state |= _prefixed("cond_stage_model.transformer.text_model.", _clip(first))
    return state


def _prefixed(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def _renamed(key: str, names: Mapping[str, str]) -> str:
    for name, other in names.items():
        key = re.sub(rf"(^|(?<=\.)){re.escape(name)}(?=\.)", other, key, count=1)
    return key


def _unet(unet: Any) -> State:
    num_layers = unet.config.layers_per_block
    return {_unet_key(key, num_layers, unet): tensor for key, tensor in unet.state_dict().items()}


def _unet_key(key: str, num_layers: int, unet: Any) -> str:
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key):
        way, block, part, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if part == "downsamplers":
            return f"input_blocks.{(block + 1) * (num_layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        if part == "upsamplers":
            place = 2 if hasattr(unet.up_blocks[block], "attentions") else 1
            return f"output_blocks.{block * (num_layers + 1) + num_layers}.{place}.{rest}"
        index = 1 + block * (num_layers + 1) + layer if way == "down" else block * (num_layers + 1) + layer
        name = "input_blocks" if way == "down" else "output_blocks"
        if part == "resnets":
            return f"{name}.{index}.0.{_renamed(rest, _RESNET_NAMES)}"
        return f"{name}.{index}.1.{rest}"
    if match := re.match(r"mid_block\.(\w+)\.(\d+)\.(.*)", key):
        if match[1] == "attentions":
            return f"middle_block.1.{match[3]}"
        return f"middle_block.{2 * int(match[2])}.{_renamed(match[3], _RESNET_NAMES)}"
    return _renamed(key, _UNET_NAMES)


def _vae(vae: Any) -> State:
    num_blocks = len(vae.config.block_out_channels)
    state = {}
    for key, tensor in vae.state_dict().items():
        name = _vae_key(key, num_blocks)
        is_projection = "mid.attn_1" in name and name.endswith("weight") and "norm" not in name
        state[name] = tensor[:, :, None, None] if is_projection else tensor
    return state


def _vae_key(key: str, num_blocks: int) -> str:
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if match := re.match(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key):
        is_up = match[1] == "decoder.up"
        block = num_blocks - 1 - int(match[2]) if is_up else int(match[2])
        if match[3] == "resnets":
            return f"{match[1]}.{block}.block.{match[4]}.{match[5]}"
        return f"{match[1]}.{block}.{'upsample' if is_up else 'downsample'}.{match[5]}"
    if match := re.match(r"(encoder|decoder)\.mid_block\.(\w+)\.(\d+)\.(.*)", key):
        if match[2] == "resnets":
            return f"{match[1]}.mid.block_{int(match[3]) + 1}.{match[4]}"
        return f"{match[1]}.mid.attn_1.{_renamed(match[4], _VAE_ATTENTION_NAMES)}"
    return key


def _clip(encoder: Any) -> State:
    return {key.removeprefix("text_model."): tensor for key, tensor in encoder.state_dict().items()}


def _open_clip(encoder: Any) -> State:
    state: State = {}
    weights = _clip(encoder)
    for key, tensor in weights.items():
        if match := re.match(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", key):
            if match[2] == "q":
                parts = [weights[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                state[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = torch.cat(parts)
        elif match := re.match(r"encoder\.layers\.(\d+)\.(.*)", key):
            state[f"transformer.resblocks.{match[1]}.{_renamed(match[2], _OPEN_CLIP_NAMES)}"] = tensor
        elif key == "text_projection.weight":
            state["text_projection"] = tensor.T
        elif key == "embeddings.token_embedding.weight":
            state["token_embedding.weight"] = tensor
        elif key == "embeddings.position_embedding.weight":
            state["positional_embedding"] = tensor
        elif key.startswith("final_layer_norm."):
            state[key.replace("final_layer_norm", "ln_final")] = tensor
    return state
