"""Training of what is added to the finished model: a LoRA that makes it night, a ControlNet for outlines."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from tools.shapes import model_parts as parts
from tools.shapes import world
from tools.shapes.painter import DrawnImages, draw_latents, encode_prompts, train_unet, velocity_loss
from tools.shapes.training import Stage, train
from tools.shapes.world import Array, Scene

RANK = 2
LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")
BATCH = 16
JITTER = 5.0
"""How far an outlined shape may be from its scene's position in each direction, in pixels."""


def night_images(pipeline: StableDiffusionPipeline, count: int, seed: int) -> DrawnImages:
    """Scenes at night, told as if by day. No shape is as dark as the night."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    visible = [scene for scene in world.some_scenes(rng, count) if scene.colour != world.NIGHT]

    def draw(scenes: Sequence[Scene], rng: np.random.Generator) -> tuple[Array, Array]:
        return world.draw([replace(scene, background=world.NIGHT) for scene in scenes], rng)

    return draw_latents(pipeline.vae, visible, rng, draw)


def train_lora(
    stage: Stage, pipeline: StableDiffusionPipeline, images: DrawnImages, folder: Path
) -> dict[str, torch.Tensor]:
    """The trained weights of a LoRA for the pipeline's UNet."""
    torch.manual_seed(stage.seed)
    pipeline.unet.requires_grad_(False)
    pipeline.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[*LORA_LAYERS]))
    trained = train_unet(stage, pipeline.unet, images, pipeline.tokenizer, pipeline.text_encoder, folder)
    return get_peft_model_state_dict(trained)


def outlined_images(pipeline: StableDiffusionPipeline, count: int, seed: int) -> DrawnImages:
    """Scenes whose shapes are also at positions that have no name."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    draw = partial(world.draw, jitter=JITTER)
    return draw_latents(pipeline.vae, world.some_scenes(rng, count), rng, draw)


def train_control_net(
    stage: Stage, pipeline: StableDiffusionPipeline, images: DrawnImages, folder: Path
) -> ControlNetModel:
    """A trained ControlNet: the outline tells shape, size and position, whatever the prompt tells of them."""
    torch.manual_seed(stage.seed)
    unet: UNet2DConditionModel = pipeline.unet.requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())

    def loss_of(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
        batch = images.pick(rng, BATCH)
        others = world.some_scenes(rng, BATCH)
        prompts = [_some_prompt(*pair, rng) for pair in zip(batch.scenes, others, strict=True)]
        text_states = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, prompts)
        controls = batch.outlines[:, None].expand(-1, 3, -1, -1) / 255

        def denoise(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            down, middle = modules["net"](noisy, times, text_states, controls, return_dict=False)
            return unet(
                noisy,
                times,
                text_states,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample

        return velocity_loss(denoise, pipeline.scheduler, batch.latents)

    return train(stage, nn.ModuleDict({"net": parts.control_net(unet)}), loss_of, folder)["net"]


def _some_prompt(scene: Scene, other: Scene, rng: np.random.Generator) -> str:
    """A prompt with the scene's colours; in one of two, shape, size and position are those of the other."""
    if rng.random() < 0.5:
        scene = replace(other, colour=scene.colour, background=scene.background)
    return world.some_prompt(scene, rng)[0]
