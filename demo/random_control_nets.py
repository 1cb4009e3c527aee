"""ControlNets of random weights for the small checkpoints, saved as diffusers saves them."""

from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel

from demo.random_loras import plain_pipeline


def save_control_net(
    folder: Path, checkpoint: Path, *, seed: int, union: bool = False, **changes: Any
) -> Path:
    """Save a ControlNet for the checkpoint, with these changes of its configuration, and return its folder.

    `union`: whether it is a union, to which several images can be given.
    """
    torch.manual_seed(seed)
    net: Any = ControlNetModel.from_unet(plain_pipeline(checkpoint).unet, load_weights_from_unet=False)
    if union:
        width = net.config.block_out_channels[0]
        known = {
            name: net.config[name]
            for name in signature(ControlNetUnionModel).parameters
            if name in net.config
        }
        net = ControlNetUnionModel(**known, num_trans_channel=width, num_proj_channel=width)
        torch.nn.init.normal_(net.spatial_ch_projs.weight, std=0.3)
    if changes:
        net = type(net).from_config({**net.config, **changes})
    # A new one has zeros where it meets the UNet, and would change nothing.
    for layer in (
        *net.controlnet_down_blocks,
        net.controlnet_mid_block,
        net.controlnet_cond_embedding.conv_out,
    ):
        torch.nn.init.normal_(layer.weight, std=0.3)
    net.save_pretrained(folder)
    return folder
