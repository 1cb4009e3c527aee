"""The names that other tools and datasets use for a row's fields."""

import re
from collections.abc import Collection

FOREIGN_NAMES: dict[str, str] = {
    "id": "row_id",
    "custom_id": "row_id",
    "key": "row_id",
    "uid": "row_id",
    "caption": "prompt",
    "text": "prompt",
    "positive_prompt": "prompt",
    "text_prompt": "prompt",
    "prompt_text": "prompt",
    "negative": "negative_prompt",
    "neg_prompt": "negative_prompt",
    "init_image": "image",
    "input_image": "image",
    "source_image": "image",
    "image_path": "image",
    "image_url": "image",
    "mask": "mask_image",
    "mask_path": "mask_image",
    "mask_url": "mask_image",
    "depth": "depth_map",
    "conditioning_image": "control_image",
    "control": "control_image",
    "step": "num_inference_steps",
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
    "sampling_steps": "num_inference_steps",
    "inference_steps": "num_inference_steps",
    "ddim_steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "denoising_strength": "strength",
    "prompt_strength": "strength",
    "denoise": "strength",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "scheduler_name": "scheduler",
    "noise_seed": "seed",
    "random_seed": "seed",
    "num_images": "num_images_per_prompt",
    "num_outputs": "num_images_per_prompt",
    "num_samples": "num_images_per_prompt",
    "n_samples": "num_images_per_prompt",
    "n_iter": "num_images_per_prompt",
    "batch_size": "num_images_per_prompt",
}
"""Other tools' names, as `snake_case`, mapped to darkroom's names for the same fields."""

_NEW_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\s-]+")


def field_meant(column: str, fields: Collection[str]) -> str | None:
    """The one of `fields` that a column's name stands for, however it is written; None for other names.

    `negativePrompt`, `Negative Prompt` and `negative-prompt` are the field `negative_prompt`.
    """
    name = _NEW_WORD.sub("_", column).lower()
    return name if name in fields else FOREIGN_NAMES.get(name)
