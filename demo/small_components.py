"""The parts of the demo's checkpoints: small models with random weights, tuned so that inputs show.

Fresh weights all but ignore their conditions. Each part here is one of the published architectures, made
narrow, with some weights scaled until a prompt, an image or a depth map moves the picture about as far
as a seed does.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.unets.unet_2d_blocks import KAttentionBlock
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    PreTrainedModel,
)

LATENT_SIZE = 8
TEXT_WIDTH = 32
VISION_SIZE = 32
"""Pixels a side that the models which look at pictures see."""
START, END = "<|startoftext|>", "<|endoftext|>"
# A few of English's commonest, so that a sentence stays within the 77 tokens.
PAIRS = (
    "t+h th+e</w> i+n in+g</w> e+r</w> e+r a+n an+d</w> o+f</w> o+n a+t a+r r+e o+r e+s</w> e+d</w> l+i s+t"
)
MERGES = [tuple(pair.split("+")) for pair in PAIRS.split()]


# What the published files agree on, also for classes that have no use for it: another scheduler inherits it.
_PUBLISHED: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def pndm_scheduler() -> PNDMScheduler:
    """Stable Diffusion 1.5's."""
    return PNDMScheduler.from_config(_PUBLISHED | {"skip_prk_steps": True})


def ddim_scheduler() -> DDIMScheduler:
    """That of Stable Diffusion 1.5's inpainting, which does not say `skip_prk_steps`."""
    return DDIMScheduler.from_config(_PUBLISHED)


def velocity_scheduler(**changes: Any) -> DDIMScheduler:
    """Stable Diffusion 2.1's: the UNet predicts a velocity, not the noise."""
    own = {"prediction_type": "v_prediction", "skip_prk_steps": True}
    return DDIMScheduler.from_config(_PUBLISHED | own | changes)


def low_res_scheduler() -> DDPMScheduler:
    """The x4 upscaler's, which puts noise on the image that is to be upscaled."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear"
    )


def euler_scheduler() -> EulerDiscreteScheduler:
    """Stable Diffusion XL's."""
    own = {"timestep_spacing": "leading", "skip_prk_steps": True}
    return EulerDiscreteScheduler.from_config(_PUBLISHED | own)


def sample_scheduler() -> EulerDiscreteScheduler:
    """The latent upscaler's: the UNet predicts no noise but the picture, by a name that Euler alone knows."""
    return EulerDiscreteScheduler.from_config(_PUBLISHED | {"prediction_type": "original_sample"})


def unet(**changes: Any) -> UNet2DConditionModel:
    """A UNet for 8x8 latents; `changes` are its configuration's keys."""
    config: dict[str, Any] = {
        "sample_size": LATENT_SIZE,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 16,
    }
    return _heed_prompts(UNet2DConditionModel(**config | changes))


def k_unet(**changes: Any) -> UNet2DConditionModel:
    """The latent upscaler's kind of UNet, from Katherine Crowson's k-diffusion."""
    return unet(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        mid_block_type=None,
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        layers_per_block=2,
        attention_head_dim=8,
        norm_num_groups=None,
        act_fn="gelu",
        conv_in_kernel=1,
        conv_out_kernel=1,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        sample_size=2 * LATENT_SIZE,
        out_channels=4 + 1,
        **changes,
    )


def _heed_prompts(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Let a prompt move the picture about as far as a seed does; fresh weights all but ignore it."""
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock | KAttentionBlock):
            block.attn2.to_q.weight.mul_(10)
            block.attn2.to_out[0].weight.mul_(4)
    unet.conv_out.weight.mul_(3)
    return unet


def vae(
    scaling_factor: float, channels: int = 3, widths: tuple[int, ...] = (16, 16, 32, 32)
) -> AutoencoderKL:
    """A VAE of factor 8, or half as much for each of the widths that is left out."""
    return _vary_widely(
        AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            latent_channels=4,
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=8 * LATENT_SIZE,
            scaling_factor=scaling_factor,
        )
    )


def _vary_widely(vae: AutoencoderKL) -> AutoencoderKL:
    """Give pixels a wide spread, and latents unit spread once scaled, with next to no noise."""
    means, log_variances = slice(0, 4), slice(4, 8)
    vae.decoder.conv_out.weight.mul_(1.3)
    vae.quant_conv.weight[means].mul_(4.5 / vae.config.scaling_factor)
    vae.quant_conv.weight[log_variances].zero_()
    vae.quant_conv.bias[log_variances].fill_(-8)
    return vae


def text_encoder(
    architecture: type[PreTrainedModel], tokenizer: CLIPTokenizer, **changes: Any
) -> PreTrainedModel:
    """A CLIP text encoder; `changes` are its configuration's keys."""
    config: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _look_sharply(architecture(CLIPTextConfig(**config | changes)))


def tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """A CLIP tokenizer over all 256 bytes, so that every prompt in every language has tokens."""
    letters = sorted(ByteLevel.alphabet())
    words = letters + [f"{letter}</w>" for letter in letters]
    words += [left + right for left, right in MERGES] + [START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=MERGES,
        pad_token=pad_token,
        model_max_length=77,
    )


def image_encoder() -> CLIPVisionModelWithProjection:
    """A CLIP that turns a picture into one token for the UNet."""
    return _look_sharply(CLIPVisionModelWithProjection(_vision_config()))


def safety_checker() -> StableDiffusionSafetyChecker:
    """A safety checker that looks at every picture and never flags one.

    It flags where a cosine is above a threshold (less 0.01 at most): no cosine is above 2.
    """
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=_vision_config().to_dict(), projection_dim=TEXT_WIDTH)
    )
    for name, parameter in checker.named_parameters():
        if name.endswith("_embeds"):
            parameter.copy_(torch.randn_like(parameter))
        elif name.endswith("_embeds_weights"):
            parameter.fill_(2)
    return checker


def feature_extractor() -> CLIPImageProcessorPil:
    """What an image encoder and a safety checker want done to a picture first."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": VISION_SIZE}, crop_size={"height": VISION_SIZE, "width": VISION_SIZE}
    )


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        image_size=VISION_SIZE,
        patch_size=8,
        hidden_size=TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
    )


def depth_estimator() -> DPTForDepthEstimation:
    """A dense prediction transformer whose depth follows the picture."""
    return _look_sharply(
        DPTForDepthEstimation(
            DPTConfig(
                image_size=VISION_SIZE,
                patch_size=8,
                hidden_size=TEXT_WIDTH,
                intermediate_size=2 * TEXT_WIDTH,
                num_hidden_layers=4,
                num_attention_heads=4,
                backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[8, 8, 16, 16],
                fusion_hidden_size=16,
            )
        )
    )


def depth_processor() -> DPTImageProcessorPil:
    """What a depth estimator wants done to a picture first."""
    return DPTImageProcessorPil(size={"height": VISION_SIZE, "width": VISION_SIZE})


def _look_sharply(model: PreTrainedModel) -> PreTrainedModel:
    """Sharpen attention, so that single words and single patches count."""
    for name, weight in model.named_parameters():
        if name.endswith("q_proj.weight"):
            weight.mul_(10)
    return model
