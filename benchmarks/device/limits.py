"""How fast a device could be: the work in a row, counted, and the rate at which it multiplies matrices."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.workloads import Row

META = torch.device("meta")
"""Where tensors have shapes and no values: work is counted and not done."""
NUM_TOKENS = 77
NUM_TIME_IDS = 6
"""That SDXL's UNet is given."""
MATRIX = {"cuda": 16384, "cpu": 512}
"""Rows and columns."""
TRIES = 5
PRODUCTS = 10
"""Of a try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Of one checkpoint, for pictures of one size, in TFLOP (a multiplication and an addition are two).

    Matrix products, convolutions and attention are counted, which is all but about one percent; text encoders
    are left out (0.1 TFLOP a prompt at most, and equal prompts are encoded once).
    """

    unet: float
    """One row, one step."""
    decoder: float

    @classmethod
    def of(cls, checkpoint: Path, side: int) -> "Work":
        """Counted on the checkpoint's configuration, without its weights."""
        with META:
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(checkpoint / "unet"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(checkpoint / "vae"))
            latent = side >> (len(vae.config.block_out_channels) - 1)
            latents = torch.empty(1, vae.config.latent_channels, latent, latent)
            return cls(
                unet=_tflop(lambda: unet(latents, **_conditions(unet.config))),
                decoder=_tflop(lambda: vae.decode(latents)),
            )

    def an_image(self, rows: Sequence[Row]) -> float:
        """The mean over rows of text-to-image; guidance above 1 takes two UNet rows a step."""
        unet_rows: int = sum(row["num_inference_steps"] * (1 + (row["guidance_scale"] > 1)) for row in rows)
        return self.unet * unet_rows / len(rows) + self.decoder


def _conditions(config: Any) -> dict[str, Any]:
    conditions: dict[str, Any] = {
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, NUM_TOKENS, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        told = NUM_TIME_IDS * config.addition_time_embed_dim
        pooled = torch.empty(1, config.projection_class_embeddings_input_dim - told)
        conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.empty(1, NUM_TIME_IDS)}
    return conditions


def _tflop(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return float(counter.get_total_flops() / 1e12)


def matrix_rate(device: torch.device) -> float:
    """TFLOP/s of large bfloat16 products, the best of some tries."""
    size = MATRIX[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    left @ right
    return max(PRODUCTS * 2 * size**3 / 1e12 / _seconds(left, right) for _ in range(TRIES))


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    synchronize(left.device)
    begun = time.perf_counter()
    for _ in range(PRODUCTS):
        torch.matmul(left, right)
    synchronize(left.device)
    return time.perf_counter() - begun


def synchronize(device: torch.device) -> None:
    """Wait for all that it has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
