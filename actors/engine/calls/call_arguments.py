"""The arguments of each system's pipeline.

Most pipelines take rows in the same way: lists of texts, images and generators, and one value of each
parameter. Those pipelines of diffusers that do not have an entry in ARGUMENTS, by name. A pipeline of
darkroom's own has a method for it, `row_arguments`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.engine.calls.prompt_encoding import with_encoded_texts
from actors.engine.cohorts import Cohort
from actors.engine.pipelines.pipeline_builder import is_union
from actors.engine.samples import Sample
from schemas.errors import RowError
from schemas.systems.control_parameters import CONTROL_IMAGES, control_images, controls_of
from schemas.systems.image_prompts import IMAGE_PROMPT, IP_ADAPTER
from schemas.wording.amounts import counted

DecodedSample = tuple[Sample, Mapping[str, Image.Image]]
"""A sample with its decoded input images, by field.

Images are RGB, masks L and depth maps I;16. In a chain, an image can also be the latents of the step before.
"""

Arguments = dict[str, Any]

NO_ARGUMENTS = (
    *("scheduler", "scheduler_options", "sld_preset", "recipe"),
    *("loras", "controlnet", "controls", *IP_ADAPTER),
)
"""Parameters that are not arguments of a pipeline: it has its scheduler and its ControlNets, gets a preset's
numbers, and LoRAs and IP-Adapters change its modules."""


def check_images(sample: Sample, images: Mapping[str, Image.Image]) -> None:
    """Raise RowError for input images from which a pipeline makes a bad image without an error."""
    depth = images.get("depth_map")
    if depth is not None and sample.system.task == "depth2img":
        low, high = depth.getextrema()
        if low == high:
            # diffusers 0.42.1 divides a depth map by its range, which gives NaN here.
            raise RowError("constant_depth", "`depth_map` has the same depth everywhere")


def check_steps(cohort: Cohort, pipeline: Any) -> None:
    """Raise RowError if `denoising_start` and `denoising_end` leave XL no step to run.

    diffusers 0.42.1 returns its input unchanged then.
    """
    start, end = (cohort.parameters.get(name) for name in ("denoising_start", "denoising_end"))
    if start is None and end is None:
        return
    trial = copy.copy(pipeline)
    trial.scheduler = copy.deepcopy(pipeline.scheduler)
    steps = int(str(cohort.parameters["num_inference_steps"]))
    trial.scheduler.set_timesteps(steps)
    timesteps = trial.scheduler.timesteps
    if "strength" in cohort.parameters:
        strength = cohort.parameters["strength"]
        timesteps, _ = trial.get_timesteps(steps, strength, "cpu", denoising_start=start)
    num_train_timesteps = trial.scheduler.config.num_train_timesteps
    # diffusers rounds the end in the same way.
    last = 0 if end is None else round(num_train_timesteps - float(str(end)) * num_train_timesteps)
    if not (timesteps >= last).any():
        raise RowError(
            "invalid_parameter",
            f"denoising_start {start} and denoising_end {end} with {counted(steps, 'step')}: "
            "no step is left to run; raise num_inference_steps",
        )


def pipeline_arguments(cohort: Cohort, decoded: Sequence[DecodedSample], pipeline: Any) -> Arguments:
    """All arguments of the pipeline's call for these samples of the cohort."""
    arguments: Arguments = {
        name: value
        for name, value in cohort.parameters.items()
        if value is not None and name not in NO_ARGUMENTS
    }
    for field in cohort.texts:
        arguments[field] = [sample.texts[field] for sample, _ in decoded]
    # On the CPU whatever the device is: a seed must give the same image on every machine.
    arguments["generator"] = [torch.Generator("cpu").manual_seed(sample.seed) for sample, _ in decoded]
    for field in (field for field in decoded[0][1] if field != IMAGE_PROMPT):
        arguments[field] = [images[field] for _, images in decoded]
        if isinstance(arguments[field][0], torch.Tensor):
            arguments[field] = torch.stack(arguments[field])
    arguments["output_type"] = "latent" if cohort.passes_latents_on else "pt"
    if cohort.num_windows > 1 or cohort.weighted:
        arguments = with_encoded_texts(arguments, pipeline, cohort.num_windows, weighted=cohort.weighted)
    adapt = ARGUMENTS.get(cohort.system.pipeline)
    if adapt:
        arguments = adapt(arguments, cohort, pipeline)
    if controls_of(cohort.parameters):
        return _controlled(arguments, cohort, pipeline)
    row_arguments = getattr(pipeline, "row_arguments", None)
    return row_arguments(arguments) if row_arguments else arguments


def _inpaint(arguments: Arguments, cohort: Cohort, pipeline: Any) -> Arguments:
    # Without a size, diffusers 0.42.1 resizes to the model's own; its img2img rounds down like this.
    arguments = _own_size(cohort, pipeline) | arguments
    if arguments.get("padding_mask_crop") is not None:
        # diffusers 0.42.1 pastes the crop back for only one PIL image at a time.
        arguments |= {
            "image": arguments["image"][0],
            "mask_image": arguments["mask_image"][0],
            "output_type": "pil",
        }
    return arguments


def _own_size(cohort: Cohort, pipeline: Any) -> Arguments:
    """The image's size, rounded down to what the VAE takes."""
    factor = pipeline.vae_scale_factor
    width, height = cohort.sizes["image"]
    return {"width": width // factor * factor, "height": height // factor * factor}


def _controlled(arguments: Arguments, cohort: Cohort, pipeline: Any) -> Arguments:
    """The arguments of the pipeline with ControlNets for those of the one without."""
    lost = (*cohort.system.lost_with_control, *CONTROL_IMAGES)
    controlled = {name: value for name, value in arguments.items() if name not in lost}
    images = [arguments[field] for field in control_images(cohort.parameters, arguments)]
    controls = controls_of(cohort.parameters)
    union = is_union(pipeline.controlnet)
    controlled.pop("control_mode", None)
    if union:
        controlled["control_mode"] = [control.control_mode for control in controls]
    if len(controls) > 1 or union:
        # The images and numbers of each; the call is for one sample.
        images = [image for (image,) in images]
        # diffusers 0.42.1 warns of lists of texts.
        controlled |= {field: controlled[field][0] for field in cohort.texts if field in controlled}
        for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"):
            controlled[name] = [getattr(control, name) for control in controls]
    else:
        # diffusers 0.42.1 crops for only one PIL image at a time.
        images = images[0][0] if arguments.get("padding_mask_crop") is not None else images[0]
    # diffusers 0.42.1 has the first name for it where there is no other image.
    controlled["control_image" if union or "image" in cohort.system.images else "image"] = images
    if "image" in cohort.system.images and not cohort.system.resizes_image:
        # Without a size, a control image of another size than the image's raises an error.
        controlled |= _own_size(cohort, pipeline)
    return controlled


def _depth2img(arguments: Arguments, cohort: Cohort, pipeline: Any) -> Arguments:
    if "depth_map" in arguments:
        maps = [depth_values(depth, pipeline.unet.dtype) for depth in arguments["depth_map"]]
        arguments["depth_map"] = torch.stack(maps)
    return arguments


def depth_values(depth: Image.Image, dtype: torch.dtype) -> torch.Tensor:
    """The values of a depth map, (height, width) in [0, 1): of its depths only their ratios matter.

    diffusers 0.42.1 casts them to `dtype` before it divides them by their range, and float16 ends at 65504.
    65536 is a power of two: in float32 and bfloat16 the result is that of undivided depths to the bit.
    If the cast would make all depths equal, which gives NaN, they begin at 0 instead.
    """
    values = torch.from_numpy(np.asarray(depth).astype(np.float32)) / 65536
    low, high = values.aminmax()
    return values - low if low.to(dtype) == high.to(dtype) else values


ARGUMENTS: dict[str, Callable[[Arguments, Cohort, Any], Arguments]] = {
    "StableDiffusionInpaintPipeline": _inpaint,
    "StableDiffusionXLInpaintPipeline": _inpaint,
    "StableDiffusionDepth2ImgPipeline": _depth2img,
}
"""By pipeline, the function that adapts the arguments."""
