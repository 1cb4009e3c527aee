"""Training of the VAE, and the latents that it gives of many drawn pictures."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn
from torch.nn import functional

from tools.shapes import model_parts as parts
from tools.shapes import world
from tools.shapes.training import Stage, train

BATCH = 16
KL_WEIGHT = 2e-4
"""Of the divergence per latent number: enough that the decoder bears latents that are a little wrong."""
LATENT_NOISE = 0.4
"""The most noise, in latents' spreads, that the decoder learns to bear."""
EDGE_WEIGHT = 4.0
"""How much more a pixel counts beside which another colour begins."""


def train_vae(stage: Stage, folder: Path) -> AutoencoderKL:
    """A VAE whose latents have unit spread once they are scaled."""
    torch.manual_seed(stage.seed)
    vae = parts.vae()
    # On a CPU the fused attention's backward pass takes longer than all else together.
    vae.set_attn_processor(AttnProcessor())
    trained = train(stage, nn.ModuleDict({"vae": vae}), _loss, folder)["vae"]
    trained.set_attn_processor(AttnProcessor2_0())
    latents = encode(trained, *images_for(np.random.default_rng(stage.seed), 512)[:1])
    return _copy(trained, 3, scaling_factor=round(1 / float(latents.std()), 4))


def _loss(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
    pictures = images_for(rng, BATCH)[0]
    with torch.autocast("cpu", torch.bfloat16):
        posterior = modules["vae"].encode(pictures).latent_dist
        drawn = modules["vae"].decode(posterior.sample()).sample
    return difference(drawn.float(), pictures) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


def train_decoder(stage: Stage, vae: AutoencoderKL, folder: Path) -> AutoencoderKL:
    """A VAE with depth as a fourth channel, LDM3D-4c's form, for the same latents.

    Its encoder is the given one and does not look at the depth. Its decoder learns on: to tell the depth
    from the latents, and to bear that the UNet's are never quite right.
    """
    torch.manual_seed(stage.seed)
    deep = with_channels(vae, 4)
    deep.set_attn_processor(AttnProcessor())

    def loss_of(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
        pictures, depths = images_for(rng, BATCH)
        latents = encode(vae, pictures)
        amount = torch.rand(BATCH, 1, 1, 1) * LATENT_NOISE / vae.config.scaling_factor
        latents = latents + amount * torch.randn_like(latents)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = modules["decoder"](modules["post_quant_conv"](latents))
        return difference(drawn.float(), torch.cat([pictures, depths], dim=1))

    learning = nn.ModuleDict({"decoder": deep.decoder, "post_quant_conv": deep.post_quant_conv})
    for name, trained in train(stage, learning, loss_of, folder).items():
        learning[name].load_state_dict(trained.state_dict())
    deep.set_attn_processor(AttnProcessor2_0())
    return deep.eval().requires_grad_(False)


def with_channels(vae: AutoencoderKL, channels: int) -> AutoencoderKL:
    """The same VAE for pictures with more or fewer channels."""
    return _copy(vae, channels, vae.config.scaling_factor)


def _copy(vae: AutoencoderKL, channels: int, scaling_factor: float) -> AutoencoderKL:
    copy = parts.vae(channels, scaling_factor)
    parts.take_over(copy, vae)
    return copy.eval()


def difference(drawn: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far pictures are apart, edges first; `wanted` may have depth as a fourth channel."""
    largest = functional.max_pool2d(wanted, 3, stride=1, padding=1)
    smallest = -functional.max_pool2d(-wanted, 3, stride=1, padding=1)
    weight = 1 + EDGE_WEIGHT * (largest - smallest).mean(dim=1, keepdim=True) / 2
    off = (drawn - wanted).abs()
    return (weight * (off + off.square())).mean()


def images_for(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random training pictures as (N, 3, 64, 64) in [-1, 1], and their depths as (N, 1, 64, 64) likewise."""
    pictures, depths = world.draw(world.some_scenes(rng, count), rng)
    return to_tensor(pictures), torch.from_numpy(depths)[:, None] * 2 - 1


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """Bytes as a pipeline feeds them to a VAE."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Latents as a pipeline would draw them, unscaled."""
    with torch.autocast("cpu", torch.bfloat16):
        return vae.encode(pictures).latent_dist.sample().float()
