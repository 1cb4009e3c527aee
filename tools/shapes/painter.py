"""Training of the UNet, on the latents of many drawn images and on prompts that describe them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from tools.shapes import autoencoder, world
from tools.shapes import model_parts as parts
from tools.shapes.reader import tokenize
from tools.shapes.training import Stage, quick_precision, train
from tools.shapes.world import Scene

BATCH = 32
CHUNK = 64
Draw = Callable[[Sequence[Scene], np.random.Generator], tuple[world.Array, world.Array]]
"""What returns images of scenes, and their depths, as `world.draw` does."""
Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What returns the velocities of noisy latents, given their times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnImages:
    """Training images that are drawn before the training, as latents and depths."""

    scenes: list[Scene]
    latents: torch.Tensor
    """(N, 4, 16, 16), scaled to a standard deviation of 1."""
    depths: torch.Tensor
    """(N, 1, 16, 16) in [-1, 1]; 1 is the nearest."""
    outlines: torch.Tensor
    """(N, 64, 64) bytes: white lines on black."""

    def pick(self, rng: np.random.Generator, count: int) -> "DrawnImages":
        """A random batch of `count` images."""
        numbers = rng.integers(len(self.scenes), size=count)
        scenes = [self.scenes[number] for number in numbers]
        return DrawnImages(
            scenes=scenes,
            latents=self.latents[numbers],
            depths=self.depths[numbers],
            outlines=self.outlines[numbers],
        )


@torch.no_grad()
def draw_latents(
    vae: AutoencoderKL, scenes: Sequence[Scene], rng: np.random.Generator, draw: Draw = world.draw
) -> DrawnImages:
    """The scenes as `draw` draws them, encoded."""
    latents, depths, outlines = [], [], []
    for start in range(0, len(scenes), CHUNK):
        images, nearness = draw(scenes[start : start + CHUNK], rng)
        latents.append(autoencoder.encode(vae, autoencoder.to_tensor(images)))
        depths.append(as_depth_map(torch.from_numpy(nearness)[:, None]))
        outlines.append(torch.from_numpy(world.outlines(nearness)))
    scaled = torch.cat(latents) * vae.config.scaling_factor
    return DrawnImages(
        scenes=[*scenes], latents=scaled, depths=torch.cat(depths), outlines=torch.cat(outlines)
    )


def as_depth_map(depths: torch.Tensor) -> torch.Tensor:
    """The depths (N, 1, H, W) as depth-to-image's UNet gets them: in the size of latents, from -1 to 1."""
    small = functional.interpolate(depths, size=parts.LATENT_SIZE, mode="bicubic", align_corners=False)
    least, most = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    return 2 * (small - least) / (most - least) - 1


def train_unet(
    stage: Stage,
    unet: UNet2DConditionModel,
    images: DrawnImages,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    folder: Path,
) -> UNet2DConditionModel:
    """Train the UNet to denoise latents as the prompt says; a UNet of five channels also gets the depth."""
    scheduler = parts.scheduler()
    # On a CPU the fused attention's backward pass takes longer than everything else together.
    unet.set_attn_processor(AttnProcessor())

    def loss_of(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
        batch = images.pick(rng, BATCH)
        prompts = [world.some_prompt(scene, rng)[0] for scene in batch.scenes]
        text_states = encode_prompts(tokenizer, text_encoder, prompts)
        extra_channels = [batch.depths] if unet.config.in_channels == 5 else []

        def denoise(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            return modules["unet"](torch.cat([noisy, *extra_channels], dim=1), times, text_states).sample

        return velocity_loss(denoise, scheduler, batch.latents)

    trained = train(stage, nn.ModuleDict({"unet": unet}), loss_of, folder)["unet"]
    trained.set_attn_processor(AttnProcessor2_0())
    return trained


def with_depth(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of the UNet with a fifth channel for the depth, which has no effect before training."""
    wider = parts.unet(in_channels=5)
    parts.take_over(wider, unet)
    return wider


@torch.no_grad()
def encode_prompts(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> torch.Tensor:
    """The text encoder's states of the prompts, which the UNet gets."""
    with quick_precision():
        return text_encoder(tokenize(tokenizer, prompts)).last_hidden_state.float()


def velocity_loss(denoise: Denoise, scheduler: DDIMScheduler, latents: torch.Tensor) -> torch.Tensor:
    """The mean squared error of the velocities, for latents with random amounts of noise."""
    noise = torch.randn_like(latents)
    times = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),))
    noisy = scheduler.add_noise(latents, noise, times)
    with quick_precision():
        velocity = denoise(noisy, times)
    return functional.mse_loss(velocity.float(), scheduler.get_velocity(latents, noise, times))
