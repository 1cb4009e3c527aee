"""Training of the VAE and its decoder with depth, and the encoding of images to latents."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn
from torch.nn import functional

from tools.shapes import model_parts as parts
from tools.shapes import world
from tools.shapes.training import Stage, quick_precision, train

BATCH = 16
KL_WEIGHT = 2e-4
"""The weight of the divergence per latent number: enough that the decoder tolerates small latent errors."""
LATENT_NOISE = 0.4
"""The most noise that the decoder learns to tolerate, in standard deviations of the latents."""
EDGE_WEIGHT = 4.0
"""How much more a pixel at the edge of a colour counts."""


def train_vae(stage: Stage, folder: Path) -> AutoencoderKL:
    """A trained VAE whose scaled latents have a standard deviation of 1."""
    torch.manual_seed(stage.seed)
    vae = parts.vae()
    # On a CPU the fused attention's backward pass takes longer than everything else together.
    vae.set_attn_processor(AttnProcessor())
    trained = train(stage, nn.ModuleDict({"vae": vae}), _loss, folder)["vae"]
    trained.set_attn_processor(AttnProcessor2_0())
    latents = encode(trained, *images_for(np.random.default_rng(stage.seed), 512)[:1])
    return _copy(trained, 3, scaling_factor=round(1 / float(latents.std()), 4))


def _loss(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
    images = images_for(rng, BATCH)[0]
    with quick_precision():
        posterior = modules["vae"].encode(images).latent_dist
        decoded = modules["vae"].decode(posterior.sample()).sample
    return difference(decoded.float(), images) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


def train_decoder(stage: Stage, vae: AutoencoderKL, folder: Path) -> AutoencoderKL:
    """A VAE for the same latents with depth as a fourth channel, as LDM3D-4c has it.

    Its encoder is that of `vae` and ignores the depth. Its decoder is trained further, to infer the depth
    from the latents and to tolerate that the UNet's latents are never quite right.
    """
    torch.manual_seed(stage.seed)
    deep = with_channels(vae, 4)
    deep.set_attn_processor(AttnProcessor())

    def loss_of(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
        images, depths = images_for(rng, BATCH)
        latents = encode(vae, images)
        spread = torch.rand(BATCH, 1, 1, 1) * LATENT_NOISE / vae.config.scaling_factor
        latents = latents + spread * torch.randn_like(latents)
        with quick_precision():
            decoded = modules["decoder"](modules["post_quant_conv"](latents))
        return difference(decoded.float(), torch.cat([images, depths], dim=1))

    trainable = nn.ModuleDict({"decoder": deep.decoder, "post_quant_conv": deep.post_quant_conv})
    for name, trained in train(stage, trainable, loss_of, folder).items():
        trainable[name].load_state_dict(trained.state_dict())
    deep.set_attn_processor(AttnProcessor2_0())
    return deep.eval().requires_grad_(False)


def with_channels(vae: AutoencoderKL, channels: int) -> AutoencoderKL:
    """A copy of the VAE for images with more or fewer channels."""
    return _copy(vae, channels, vae.config.scaling_factor)


def _copy(vae: AutoencoderKL, channels: int, scaling_factor: float) -> AutoencoderKL:
    copy = parts.vae(channels, scaling_factor)
    parts.take_over(copy, vae)
    return copy.eval()


def difference(decoded: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The mean difference of images, in which edges count more; depth may be a fourth channel."""
    largest = functional.max_pool2d(expected, 3, stride=1, padding=1)
    smallest = -functional.max_pool2d(-expected, 3, stride=1, padding=1)
    weight = 1 + EDGE_WEIGHT * (largest - smallest).mean(dim=1, keepdim=True) / 2
    error = (decoded - expected).abs()
    return (weight * (error + error.square())).mean()


def images_for(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random training images, (N, 3, 64, 64) in [-1, 1], and their depths, (N, 1, 64, 64) in [-1, 1]."""
    images, depths = world.draw(world.some_scenes(rng, count), rng)
    return to_tensor(images), torch.from_numpy(depths)[:, None] * 2 - 1


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Images of (N, 64, 64, 3) bytes in the form that a VAE takes: (N, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """The images' latents, sampled as a pipeline samples them and not yet scaled."""
    with quick_precision():
        return vae.encode(images).latent_dist.sample().float()
