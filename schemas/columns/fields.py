"""The fields of a row, and which of them a job's routes can read."""

from schemas.spec.job_spec import JobSpec
from schemas.systems.control_parameters import CONTROL_IMAGES
from schemas.systems.image_prompts import IMAGE_PROMPT
from schemas.systems.parameters import PARAMETERS
from schemas.systems.system_table import SYSTEMS

IMAGE_FIELDS: tuple[str, ...] = ("image", "mask_image", "depth_map", *CONTROL_IMAGES, IMAGE_PROMPT)
"""Fields that contain an image: a Hugging Face image struct, bytes, or a URI."""

TEXT_FIELDS: tuple[str, ...] = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
"""Fields that say what the image should show, or should not show."""

FIELD_KINDS: dict[str, str] = {
    "row_id": "id",
    "task": "text",
    "model": "text",
    **dict.fromkeys(TEXT_FIELDS, "text"),
    **dict.fromkeys(IMAGE_FIELDS, "image"),
    "seed": "whole number",
    "num_images_per_prompt": "whole number",
    **{name: bounds.kind for name, bounds in PARAMETERS.items()},
}
"""Every field that an input row may have, and the kind of column that can fill it."""


def used_fields(spec: JobSpec) -> set[str]:
    """The fields that some route of the job reads, whatever its model is, and those that all jobs have."""
    tasks = {spec.task_of(route) for route in spec.routes}
    systems = [system for system in SYSTEMS if system.task in tasks]
    read = {
        name for system in systems for name in (*system.images, *system.optional_images, *system.defaults)
    }
    if not any(model.controlnets for model in spec.models.values()):
        read -= {*CONTROL_IMAGES}
    if not any(model.ip_adapters for model in spec.models.values()):
        read -= {IMAGE_PROMPT}
    return {name for name in FIELD_KINDS if name in read or name not in {*IMAGE_FIELDS, *PARAMETERS}}
