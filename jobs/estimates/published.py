"""Published speeds of GPUs, for a guess where nothing was measured."""

from dataclasses import dataclass

from schemas.systems.model_card import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedGpu:
    """How fast diffusers denoised on a GPU, in float16, with guidance and without torch.compile."""

    name: str
    """A part of the name that the driver gives it."""
    sd_steps_per_s: float
    """Image-steps a second of Stable Diffusion 1.5 at 512 x 512 in batches of 16."""


SD_PIXELS = 512 * 512
XL_PIXELS = 1024 * 1024
XL_STEPS = 57.6 / 8.43
"""The image-steps of SD 1.5 at 512 x 512 that take as long as one of SDXL at 1024 x 1024. An A100 runs 8.43
of SDXL's a second (github.com/fal-ai/stable-diffusion-benchmarks, diffusers with torch 2.1 and SDPA)."""
DECODING_STEPS = 1.8
"""The same for decoding an image of 512 x 512: 1.24e12 multiplications, and a guided step has 0.68e12."""

GPUS = (
    # diffusers' documentation, "Torch 2.0", txt2img, batch size 16, torch nightly without compile:
    # huggingface.co/docs/diffusers/v0.17.0/optimization/torch2.0
    PublishedGpu(name="A100", sd_steps_per_s=57.6),
    PublishedGpu(name="RTX 4090", sd_steps_per_s=51.2),
    PublishedGpu(name="RTX 3090", sd_steps_per_s=27.0),
    PublishedGpu(name="V100", sd_steps_per_s=26.6),
    PublishedGpu(name="T4", sd_steps_per_s=7.0),
    # Two to three times an A100: baseten.co/blog/
    # unlocking-the-full-power-of-nvidia-h100-gpus-for-ml-inference-with-tensorrt
    # In MLPerf, SDXL is 6 % faster on an H200 than on an H100.
    PublishedGpu(name="H100", sd_steps_per_s=115.0),
    PublishedGpu(name="H200", sd_steps_per_s=115.0),
)

LEAST_WEIGHTS = 500_000_000
"""Bytes of a checkpoint's weights below which it is none of the published models' size."""


def published_gpu(device: str) -> PublishedGpu | None:
    """The published GPU with this name; None if there is none."""
    words = device.replace("-", " ").replace("_", " ")
    return next((gpu for gpu in GPUS if f" {gpu.name} " in f" {words} "), None)


def has_published_size(card: ModelCard) -> bool:
    """Whether the checkpoint may be as large as the published ones; on the Hub its size is not known."""
    return not card.weight_bytes or card.weight_bytes >= LEAST_WEIGHTS


def published_rates(gpu: PublishedGpu, card: ModelCard) -> tuple[float, float]:
    """Seconds that denoising takes for a pixel, once, and what else an image takes for each of its pixels."""
    of_step = 1 / gpu.sd_steps_per_s
    # A step with guidance denoises twice.
    is_xl = card.family.startswith("sdxl")
    of_pixel = of_step * XL_STEPS / XL_PIXELS / 2 if is_xl else of_step / SD_PIXELS / 2
    return of_pixel, of_step * DECODING_STEPS / SD_PIXELS
