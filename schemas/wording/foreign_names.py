"""The names that other tools and datasets use for a row's fields."""

FOREIGN_NAMES: dict[str, str] = {
    "id": "row_id",
    "custom_id": "row_id",
    "key": "row_id",
    "uid": "row_id",
    "caption": "prompt",
    "text": "prompt",
    "negative": "negative_prompt",
    "neg_prompt": "negative_prompt",
    "init_image": "image",
    "mask": "mask_image",
    "depth": "depth_map",
    "steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "denoising_strength": "strength",
    "sampler": "scheduler",
    "num_images": "num_images_per_prompt",
    "num_outputs": "num_images_per_prompt",
}
"""Other tools' names, in lower case, mapped to darkroom's names for the same fields."""
