"""IP-Adapters of random weights for the small checkpoints, in the published forms, and image encoders."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from demo import small_components
from demo.random_loras import plain_pipeline

Form = Literal["plain", "plus", "full-face"]
NUM_LAYERS = 4
"""The number of layers of a resampler in diffusers."""
HEAD = 64
"""The width of a resampler's only head here."""
_Random = Callable[..., torch.Tensor]


def save_image_encoder(folder: Path, *, seed: int) -> Path:
    """Save an image encoder of random weights, and return its folder."""
    _image_encoder(seed).save_pretrained(folder)
    return folder


@torch.no_grad()
def _image_encoder(seed: int) -> Any:
    torch.manual_seed(seed)
    return small_components.image_encoder()


def save_ip_adapter(file: Path, checkpoint: Path, *, seed: int, form: Form = "plain") -> Path:
    """Save an IP-Adapter of random weights for a checkpoint and the small image encoder; return its file."""
    unet, encoder = plain_pipeline(checkpoint).unet, _image_encoder(0).config
    source = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return random(rows, columns) / columns**0.5

    width = unet.config.cross_attention_dim
    projection = {
        "plain": lambda: _plain(matrix, width, encoder.projection_dim),
        "plus": lambda: _resampler(matrix, random, width, encoder.hidden_size),
        "full-face": lambda: _full_face(matrix, width, encoder.hidden_size),
    }[form]()
    weights = {f"image_proj.{name}": weight for name, weight in projection.items()}
    cross = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(cross):
        layer = unet.get_submodule(name.removesuffix(".processor"))
        for key in ("to_k_ip", "to_v_ip"):
            # Numbered as the original code does: it counts self-attention too.
            weights[f"ip_adapter.{2 * number + 1}.{key}.weight"] = matrix(layer.inner_dim, width)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file)
    return file


def _norm(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def _linear(matrix: _Random, name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": matrix(rows, columns), f"{name}.bias": torch.zeros(rows)}


def _plain(matrix: _Random, width: int, embedding: int) -> Mapping[str, torch.Tensor]:
    return _linear(matrix, "proj", 4 * width, embedding) | _norm("norm", width)


def _full_face(matrix: _Random, width: int, hidden: int) -> Mapping[str, torch.Tensor]:
    return (
        _linear(matrix, "proj.0", hidden, hidden)
        | _linear(matrix, "proj.2", width, hidden)
        | _norm("proj.3", width)
    )


def _resampler(matrix: _Random, random: _Random, width: int, hidden: int) -> Mapping[str, torch.Tensor]:
    weights = {"latents": random(1, 3, HEAD)}
    weights |= _linear(matrix, "proj_in", HEAD, hidden)
    weights |= _linear(matrix, "proj_out", width, HEAD) | _norm("norm_out", width)
    for number in range(NUM_LAYERS):
        attention, feed_forward = f"layers.{number}.0", f"layers.{number}.1"
        weights |= _norm(f"{attention}.norm1", HEAD) | _norm(f"{attention}.norm2", HEAD)
        weights |= {
            f"{attention}.to_q.weight": matrix(HEAD, HEAD),
            f"{attention}.to_kv.weight": matrix(2 * HEAD, HEAD),
            f"{attention}.to_out.weight": matrix(HEAD, HEAD),
            **_norm(f"{feed_forward}.0", HEAD),
            f"{feed_forward}.1.weight": matrix(4 * HEAD, HEAD),
            f"{feed_forward}.3.weight": matrix(HEAD, 4 * HEAD),
        }
    return weights
