"""How fast a device could be: the counted work in an image, and the device's rate of matrix products."""

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
"""The device whose tensors have shapes but no values: work is counted there without being done."""
NUM_TOKENS = 77
NUM_TIME_IDS = 6
"""How many numbers about sizes SDXL's UNet gets."""
MATRIX = {"cuda": 16384, "cpu": 128}
"""The number of rows and columns of a matrix, by the type of device."""
TRIES = 5
PRODUCTS = 10
"""Matrix products in a try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of one checkpoint for images of one size, in TFLOP.

    A multiplication and an addition count as two operations. Matrix products, convolutions and attention are
    counted, which is all but about one percent of the work. Text encoders are left out: they need at most
    0.1 TFLOP per prompt, and equal prompts are encoded once.
    """

    unet: float
    """The work of one UNet row in one step."""
    decoder: float
    """The work of decoding one image."""

    @classmethod
    def of(cls, checkpoint: Path, side: int) -> "Work":
        """The work counted from the checkpoint's configuration, without its weights."""
        with META:
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(checkpoint / "unet"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(checkpoint / "vae"))
            latent = side >> (len(vae.config.block_out_channels) - 1)
            latents = torch.empty(1, vae.config.latent_channels, latent, latent)
            return cls(
                unet=_tflop(lambda: unet(latents, **_conditions(unet.config))),
                decoder=_tflop(lambda: vae.decode(latents)),
            )

    def per_image(self, rows: Sequence[Row]) -> float:
        """The mean work in an image of these text-to-image rows; guidance above 1 needs two UNet rows."""
        unet_rows: int = sum(row["num_inference_steps"] * (1 + (row["guidance_scale"] > 1)) for row in rows)
        return self.unet * unet_rows / len(rows) + self.decoder


def _conditions(config: Any) -> dict[str, Any]:
    conditions: dict[str, Any] = {
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, NUM_TOKENS, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        time_width = NUM_TIME_IDS * config.addition_time_embed_dim
        pooled = torch.empty(1, config.projection_class_embeddings_input_dim - time_width)
        conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.empty(1, NUM_TIME_IDS)}
    return conditions


def _tflop(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return float(counter.get_total_flops() / 1e12)


def matrix_rate(device: torch.device) -> float:
    """The device's rate of large bfloat16 matrix products, in TFLOP/s: the best of several tries."""
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
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
