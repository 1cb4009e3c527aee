"""The components of the demo's checkpoints: small models with random weights, which respond to their inputs.

Fresh weights almost ignore their conditions. Each component here is a narrow version of a published
architecture. Some of its weights are scaled, so that a prompt, an image or a depth map changes the result
about as much as a seed does.
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
"""The side, in pixels, of the images that the vision models see."""
START, END = "<|startoftext|>", "<|endoftext|>"
# These are a few of the most common pairs in English, so that a sentence stays within the 77 tokens.
PAIRS = (
    "t+h th+e</w> i+n in+g</w> e+r</w> e+r a+n an+d</w> o+f</w> o+n a+t a+r r+e o+r e+s</w> e+d</w> l+i s+t"
)
MERGES = [tuple(pair.split("+")) for pair in PAIRS.split()]


# These settings are in all published files, even if a class does not use them: a scheduler that is built from
# another one's configuration inherits them.
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
    """The scheduler of Stable Diffusion 1.5."""
    return PNDMScheduler.from_config(_PUBLISHED | {"skip_prk_steps": True})


def ddim_scheduler() -> DDIMScheduler:
    """The scheduler of Stable Diffusion 1.5's inpainting, whose configuration lacks `skip_prk_steps`."""
    return DDIMScheduler.from_config(_PUBLISHED)


def velocity_scheduler(**changes: Any) -> DDIMScheduler:
    """The scheduler of Stable Diffusion 2.1, whose UNet predicts a velocity instead of the noise."""
    own = {"prediction_type": "v_prediction", "skip_prk_steps": True}
    return DDIMScheduler.from_config(_PUBLISHED | own | changes)


def low_res_scheduler() -> DDPMScheduler:
    """The scheduler with which the x4 upscaler adds noise to the image that it upscales."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear"
    )


def euler_scheduler() -> EulerDiscreteScheduler:
    """The scheduler of Stable Diffusion XL."""
    own = {"timestep_spacing": "leading", "skip_prk_steps": True}
    return EulerDiscreteScheduler.from_config(_PUBLISHED | own)


def sample_scheduler() -> EulerDiscreteScheduler:
    """The scheduler of the latent upscaler, whose UNet predicts the image itself.

    Its configuration calls that `original_sample`, a name that only Euler accepts.
    """
    return EulerDiscreteScheduler.from_config(_PUBLISHED | {"prediction_type": "original_sample"})


def unet(**changes: Any) -> UNet2DConditionModel:
    """A UNet for 8x8 latents; `changes` replace keys of its configuration."""
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
    """A UNet of the latent upscaler's kind, from Katherine Crowson's k-diffusion."""
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
    """Scale weights so that a prompt changes the image about as much as a seed does; return the UNet."""
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock | KAttentionBlock):
            block.attn2.to_q.weight.mul_(10)
            block.attn2.to_out[0].weight.mul_(4)
    unet.conv_out.weight.mul_(3)
    return unet


def vae(
    scaling_factor: float, channels: int = 3, widths: tuple[int, ...] = (16, 16, 32, 32)
) -> AutoencoderKL:
    """A VAE of factor 8 for four widths. Each width fewer halves the factor."""
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
    """Scale weights so that pixels vary widely, and scaled latents have unit variance and almost no noise."""
    means, log_variances = slice(0, 4), slice(4, 8)
    vae.decoder.conv_out.weight.mul_(1.3)
    vae.quant_conv.weight[means].mul_(4.5 / vae.config.scaling_factor)
    vae.quant_conv.weight[log_variances].zero_()
    vae.quant_conv.bias[log_variances].fill_(-8)
    return vae


def text_encoder(
    architecture: type[PreTrainedModel], tokenizer: CLIPTokenizer, **changes: Any
) -> PreTrainedModel:
    """A CLIP text encoder; `changes` replace keys of its configuration."""
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
    return _sharpen_attention(architecture(CLIPTextConfig(**config | changes)))


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
    """A CLIP image encoder, which turns an image into one token for the UNet."""
    return _sharpen_attention(CLIPVisionModelWithProjection(_vision_config()))


def safety_checker() -> StableDiffusionSafetyChecker:
    """A safety checker that examines every image and never flags one.

    It flags an image if a cosine is above a threshold (less 0.01 at most). The thresholds are 2, and no
    cosine is above 1.
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
    """The preprocessor of the image encoder and the safety checker."""
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
    """A dense prediction transformer whose depth map depends on the image."""
    model = DPTForDepthEstimation(
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
    # Each fresh convolution makes its input several times smaller: in float16 the depths would all be 0.
    for layer in (*model.neck.modules(), *model.head.modules()):
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.mul_(8)
    # The last activation makes everything below 0 equal, which would be no depth at all.
    model.head.head[4].bias.fill_(0.25)
    return _sharpen_attention(model)


def depth_processor() -> DPTImageProcessorPil:
    """The preprocessor of the depth estimator."""
    return DPTImageProcessorPil(size={"height": VISION_SIZE, "width": VISION_SIZE})


def _sharpen_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Sharpen the attention, so that single words and patches have an effect; return the model."""
    for name, weight in model.named_parameters():
        if name.endswith("q_proj.weight"):
            weight.mul_(10)
    return model
