"""Training of the UNet, on the latents of many drawn pictures and on prompts that tell them."""

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
from tools.shapes.training import Stage, train
from tools.shapes.world import Scene

BATCH = 32
CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Pictures drawn beforehand, as the VAE sees them."""

    scenes: list[Scene]
    latents: torch.Tensor
    """(N, 4, 16, 16), scaled to unit spread."""
    depths: torch.Tensor
    """(N, 1, 16, 16) in [-1, 1], nearest 1."""

    def pick(self, rng: np.random.Generator, count: int) -> "Drawn":
        numbers = rng.integers(len(self.scenes), size=count)
        scenes = [self.scenes[number] for number in numbers]
        return Drawn(scenes=scenes, latents=self.latents[numbers], depths=self.depths[numbers])


@torch.no_grad()
def draw_latents(vae: AutoencoderKL, count: int, seed: int) -> Drawn:
    """Draw `count` training pictures and encode them."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    scenes = world.some_scenes(rng, count)
    latents, depths = [], []
    for start in range(0, count, CHUNK):
        pictures, near = world.draw(scenes[start : start + CHUNK], rng)
        latents.append(autoencoder.encode(vae, autoencoder.to_tensor(pictures)))
        depths.append(as_depth_map(torch.from_numpy(near)[:, None]))
    scaled = torch.cat(latents) * vae.config.scaling_factor
    return Drawn(scenes=scenes, latents=scaled, depths=torch.cat(depths))


def as_depth_map(near: torch.Tensor) -> torch.Tensor:
    """Depths (N, 1, H, W) as depth-to-image's pipeline feeds them: as small as latents, from -1 to 1."""
    small = functional.interpolate(near, size=parts.LATENT_SIZE, mode="bicubic", align_corners=False)
    least, most = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    return 2 * (small - least) / (most - least) - 1


def train_unet(
    stage: Stage,
    unet: UNet2DConditionModel,
    pictures: Drawn,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    folder: Path,
) -> UNet2DConditionModel:
    """Teach a UNet to take the noise from latents as the prompt says; one of five channels sees the depth."""
    noises = parts.scheduler()
    # On a CPU the fused attention's backward pass takes longer than all else together.
    unet.set_attn_processor(AttnProcessor())

    def loss_of(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
        batch = pictures.pick(rng, BATCH)
        told = read(tokenizer, text_encoder, [world.some_prompt(scene, rng)[0] for scene in batch.scenes])
        shown = [batch.depths] if unet.config.in_channels == 5 else []
        return velocity_loss(modules["unet"], noises, batch.latents, told, *shown)

    trained = train(stage, nn.ModuleDict({"unet": unet}), loss_of, folder)["unet"]
    trained.set_attn_processor(AttnProcessor2_0())
    return trained


def with_depth(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same UNet with a fifth channel, for the depth, which it does not heed before it is trained."""
    wider = parts.unet(in_channels=5)
    parts.take_over(wider, unet)
    return wider


@torch.no_grad()
def read(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> torch.Tensor:
    """What the UNet is told of the prompts."""
    with torch.autocast("cpu", torch.bfloat16):
        return text_encoder(tokenize(tokenizer, prompts)).last_hidden_state.float()


def velocity_loss(
    unet: UNet2DConditionModel,
    noises: DDIMScheduler,
    latents: torch.Tensor,
    told: torch.Tensor,
    *shown: torch.Tensor,
) -> torch.Tensor:
    """How wrong the UNet is about latents with some noise; `shown` are further channels for it to see."""
    noise = torch.randn_like(latents)
    times = torch.randint(0, noises.config.num_train_timesteps, (len(latents),))
    noisy = noises.add_noise(latents, noise, times)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = unet(torch.cat([noisy, *shown], dim=1), times, told).sample
    return functional.mse_loss(velocity.float(), noises.get_velocity(latents, noise, times))
