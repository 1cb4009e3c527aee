"""The untrained parts of the model: Stable Diffusion's architectures with few channels."""

import json
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
)

from tools.shapes import world

LATENT_SIZE = 16
TEXT_WIDTH = 64
NUM_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def vae(channels: int = 3, scaling_factor: float = 1.0) -> AutoencoderKL:
    """A VAE that shrinks images by a factor of 4; LDM3D-4c's VAE has depth as a fourth channel."""
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=4,
        block_out_channels=(16, 24, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=world.SIZE,
        scaling_factor=scaling_factor,
    )


def unet(in_channels: int = 4) -> UNet2DConditionModel:
    """A UNet for 16x16 latents; its cross-attention to the prompt is at 4x4."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def control_net(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for the UNet, which has no effect before training; it does not read the prompt.

    It begins with the weights of the UNet's first layers, as far as it has these layers.
    """
    net = ControlNetModel(
        down_block_types=("DownBlock2D",) * 3,
        mid_block_type="UNetMidBlock2D",
        conditioning_embedding_out_channels=(8, 16, 32),
        **{
            name: unet.config[name]
            for name in (
                "in_channels",
                "block_out_channels",
                "layers_per_block",
                "cross_attention_dim",
                "attention_head_dim",
                "norm_num_groups",
            )
        },
    )
    weights = unet.state_dict()
    shared = {name: weights[name] for name in net.state_dict().keys() & weights.keys()}
    net.load_state_dict(shared, strict=False)
    return net


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=NUM_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def depth_estimator() -> DPTForDepthEstimation:
    """A dense prediction transformer over 8x8 patches."""
    config = DPTConfig(
        image_size=world.SIZE,
        patch_size=8,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[12, 12, 24, 24],
        fusion_hidden_size=16,
    )
    estimator = DPTForDepthEstimation(config)
    for layer in estimator.modules():
        # transformers' initial weights are meant for a trained backbone: they are too small to learn from.
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.reset_parameters()
    return estimator


def depth_processor() -> DPTImageProcessorPil:
    """The preprocessor of images for the depth estimator."""
    return DPTImageProcessorPil(size={"height": world.SIZE, "width": world.SIZE})


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer with one token for each word of the world, and all 256 bytes for other text."""
    merges = _merges(world.all_words())
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair) for pair in merges]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate([*tokens, START, END])},
        merges=merges,
        pad_token=END,
        model_max_length=NUM_TOKENS,
    )


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """The byte pairs to merge, in order, so that each word becomes one token."""
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    trainer = BpeTrainer(vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(words, trainer)
    return [tuple(pair) for pair in _model(learner)["merges"]]


def _model(learner: Tokenizer) -> dict[str, Any]:
    return json.loads(learner.to_str())["model"]


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 2.1's scheduler.

    With it the UNet predicts a velocity, from which it learns most where the noise is strong.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@torch.no_grad()
def take_over(module: nn.Module, other: nn.Module) -> None:
    """Copy the weights of `other` to `module`.

    Further channels of `module` become zeros. If it has fewer channels, it gets the first ones.
    """
    weights = other.state_dict()
    for name, weight in module.state_dict().items():
        shared = tuple(slice(min(sizes)) for sizes in zip(weight.shape, weights[name].shape, strict=True))
        weight.zero_()[shared] = weights[name][shared]
