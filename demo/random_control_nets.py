"""Writes ControlNets of random weights for small checkpoints, as diffusers saves them."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from demo.random_loras import plain_pipeline


def save_control_net(folder: Path, checkpoint: Path, *, seed: int, **changes: Any) -> Path:
    """Save a ControlNet of random weights for the checkpoint, with these changes of its configuration."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(plain_pipeline(checkpoint).unet, load_weights_from_unet=False)
    if changes:
        net = ControlNetModel.from_config({**net.config, **changes})
    # A new one has zeros where it meets the UNet, and would change nothing.
    for layer in (
        *net.controlnet_down_blocks,
        net.controlnet_mid_block,
        net.controlnet_cond_embedding.conv_out,
    ):
        torch.nn.init.normal_(layer.weight, std=0.3)
    net.save_pretrained(folder)
    return folder
