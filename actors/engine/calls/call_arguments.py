"""What each system's pipeline is called with.

Most take rows alike: lists of texts, pictures and generators, one value of every parameter. The few of
diffusers that do not have an entry in ARGUMENTS, by the name of their pipeline; one of darkroom's own says
itself how it is called, with `row_arguments`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.engine.calls.prompt_encoding import encoded
from actors.engine.cohorts import Cohort
from actors.engine.samples import Sample
from schemas.errors import RowError

Decoded = tuple[Sample, Mapping[str, Image.Image]]
"""A sample with its pictures: RGB, masks L, depth maps I;16."""

Arguments = dict[str, Any]

NO_ARGUMENTS = ("scheduler", "scheduler_options", "sld_preset")
"""Parameters that a pipeline is not called with: it is given its scheduler, and a preset's numbers."""


def check_images(sample: Sample, pictures: Mapping[str, Image.Image]) -> None:
    """RowError for what a pipeline would spoil without a word."""
    depth = pictures.get("depth_map")
    if depth is not None and sample.system.task == "depth2img":
        low, high = depth.getextrema()
        if low == high:
            # It is scaled by its range, so diffusers 0.42.1 gives NaN.
            raise RowError("constant_depth", "`depth_map` has the same depth everywhere")
    mask = pictures.get("mask_image")
    if mask is not None and sample.parameters.get("padding_mask_crop") is not None and not mask.getbbox():
        raise RowError("empty_mask", "`mask_image` is black everywhere, so padding_mask_crop has no crop")


def check_steps(cohort: Cohort, pipeline: Any) -> None:
    """RowError where XL's shares leave no step to run: diffusers 0.42.1 then hands on what it was given."""
    start, end = (cohort.parameters.get(name) for name in ("denoising_start", "denoising_end"))
    if start is None and end is None:
        return
    tried = copy.copy(pipeline)
    tried.scheduler = copy.deepcopy(pipeline.scheduler)
    steps = int(str(cohort.parameters["num_inference_steps"]))
    tried.scheduler.set_timesteps(steps)
    times = tried.scheduler.timesteps
    if "strength" in cohort.parameters:
        times, _ = tried.get_timesteps(steps, cohort.parameters["strength"], "cpu", denoising_start=start)
    train = tried.scheduler.config.num_train_timesteps
    # As diffusers rounds it.
    least = 0 if end is None else round(train - float(str(end)) * train)
    if not (times >= least).any():
        raise RowError(
            "invalid_parameter",
            f"denoising_start {start}, denoising_end {end} of {steps} steps: no step is left to run; "
            "raise num_inference_steps",
        )


def arguments(cohort: Cohort, decoded: Sequence[Decoded], pipeline: Any) -> Arguments:
    """Everything that the pipeline is called with."""
    found: Arguments = {
        name: value
        for name, value in cohort.parameters.items()
        if value is not None and name not in NO_ARGUMENTS
    }
    for field in cohort.texts:
        found[field] = [sample.texts[field] for sample, _ in decoded]
    # On the CPU whatever the device is: a seed must mean the same picture on every machine.
    found["generator"] = [torch.Generator("cpu").manual_seed(sample.seed) for sample, _ in decoded]
    for field in decoded[0][1]:
        found[field] = [pictures[field] for _, pictures in decoded]
        if isinstance(found[field][0], torch.Tensor):
            found[field] = torch.stack(found[field])
    found["output_type"] = "latent" if cohort.gives_latents else "pt"
    if cohort.num_windows > 1 or cohort.weighted:
        found = encoded(found, pipeline, cohort.num_windows, weighted=cohort.weighted)
    change = ARGUMENTS.get(cohort.system.pipeline)
    if change:
        return change(found, cohort, pipeline)
    own = getattr(pipeline, "row_arguments", None)
    return own(found) if own else found


def _inpaint(found: Arguments, cohort: Cohort, pipeline: Any) -> Arguments:
    # Left alone, diffusers 0.42.1 resizes to the model's own size; its img2img floors like this.
    factor = pipeline.vae_scale_factor
    width, height = cohort.sizes["image"]
    found |= {"width": width // factor * factor, "height": height // factor * factor}
    if found.get("padding_mask_crop") is not None:
        # diffusers 0.42.1 pastes the crop back for one PIL picture at a time only.
        found |= {"image": found["image"][0], "mask_image": found["mask_image"][0], "output_type": "pil"}
    return found


def _depth2img(found: Arguments, cohort: Cohort, pipeline: Any) -> Arguments:
    if "depth_map" in found:
        maps = [torch.from_numpy(np.asarray(depth).astype(np.float32)) for depth in found["depth_map"]]
        found["depth_map"] = torch.stack(maps)
    return found


ARGUMENTS: dict[str, Callable[[Arguments, Cohort, Any], Arguments]] = {
    "StableDiffusionInpaintPipeline": _inpaint,
    "StableDiffusionXLInpaintPipeline": _inpaint,
    "StableDiffusionDepth2ImgPipeline": _depth2img,
}
