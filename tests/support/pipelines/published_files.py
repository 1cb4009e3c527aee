"""Checkpoints as single files, with the published keys: diffusers' conversion the other way."""

import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo import small_components
from models.clip_tokenizer import NUM_TOKENS, write_tokenizer

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
    pipeline: Any,
    path: Path,
    *,
    marks: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
) -> Path:
    """Save a pipeline of Stable Diffusion as one file, and return its path.

    `marks`: names of empty tensors, such as v_pred; `without`: what the keys begin with that are left out.
    """
    state = single_file_state(pipeline)
    state = {key: tensor for key, tensor in state.items() if not key.startswith(without)}
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


def small_pipeline(kind: str, seed: int = 0) -> Any:
    """A small pipeline of a kind of KINDS, which differs from the published one in its widths and depths."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return _BUILDERS[kind.removesuffix("-inpaint")](9 if kind.endswith("-inpaint") else 4)


def _small_1(channels: int) -> Any:
    scheduler = small_components.pndm_scheduler() if channels == 4 else small_components.ddim_scheduler()
    text = _small_text(CLIPTextModel, 64, "quick_gelu")
    unet = _small_unet(in_channels=channels, cross_attention_dim=64, attention_head_dim=8)
    return _SD_CLASSES[channels](**_sd(text, unet, scheduler, "<|endoftext|>"))


def _small_2(channels: int) -> Any:
    settings = {} if channels == 4 else {"prediction_type": "epsilon"}
    text = _small_text(CLIPTextModel, 128, "gelu")
    unet = _small_unet(
        in_channels=channels, cross_attention_dim=128, attention_head_dim=[1, 1], use_linear_projection=True
    )
    return _SD_CLASSES[channels](**_sd(text, unet, small_components.velocity_scheduler(**settings), "!"))


def _sd(text: Any, unet: Any, scheduler: Any, pad_token: str) -> dict[str, Any]:
    return {
        "vae": _small_vae(0.18215),
        "text_encoder": text,
        "tokenizer": _tokenizer(pad_token),
        "unet": unet,
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _small_xl(channels: int) -> Any:
    cls = StableDiffusionXLPipeline if channels == 4 else StableDiffusionXLInpaintPipeline
    return cls(
        vae=_small_vae(0.13025),
        text_encoder=_small_text(CLIPTextModel, 64, "quick_gelu"),
        text_encoder_2=_small_text(CLIPTextModelWithProjection, 128, "gelu"),
        tokenizer=_tokenizer("<|endoftext|>"),
        tokenizer_2=_tokenizer("!"),
        unet=_small_unet(in_channels=channels, cross_attention_dim=64 + 128, **_size_aware(6)),
        scheduler=small_components.euler_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _small_refiner(channels: int) -> Any:
    return StableDiffusionXLImg2ImgPipeline(
        vae=_small_vae(0.13025),
        text_encoder=None,
        text_encoder_2=_small_text(CLIPTextModelWithProjection, 128, "gelu"),
        tokenizer=None,
        tokenizer_2=_tokenizer("!"),
        unet=_small_unet(in_channels=channels, cross_attention_dim=128, **_size_aware(5)),
        scheduler=small_components.euler_scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


_SD_CLASSES = {4: StableDiffusionPipeline, 9: StableDiffusionInpaintPipeline}
_BUILDERS = {"sd1": _small_1, "sd2": _small_2, "xl": _small_xl, "xl-refiner": _small_refiner}
KINDS = ("sd1", "sd1-inpaint", "sd2", "sd2-inpaint", "xl", "xl-inpaint", "xl-refiner")


def _size_aware(num_time_ids: int) -> dict[str, Any]:
    """A UNet of XL's form: its first level has no attention, and the next ones have more and more of it."""
    return {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (1, 1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 128 + num_time_ids * 8,
    }


def _small_unet(**changes: Any) -> Any:
    return small_components.unet(
        block_out_channels=changes.pop("block_out_channels", (32, 64)), norm_num_groups=32, **changes
    )


def _small_vae(scaling_factor: float) -> Any:
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        scaling_factor=scaling_factor,
    )


def _small_text(cls: Any, width: int, act: str) -> Any:
    config = CLIPTextConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=2,
    )
    return cls(config).eval()


@cache
def _tokenizer(pad_token: str) -> Any:
    """CLIP's tokenizer, whose vocabulary takes longest to write and read."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder) / "tokenizer", pad_token)
        return CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
