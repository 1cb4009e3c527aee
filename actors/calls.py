"""What each system's pipeline is called with, and what it gives back.

Most take rows alike: lists of texts, pictures and generators, one value of every parameter. The few that do
not have an entry in ARGUMENTS, by the name of their pipeline.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors.cohorts import Cohort
from actors.engine import Depth, Pixels
from actors.prompts import encoded
from actors.samples import Sample
from schemas.errors import RowError

Decoded = tuple[Sample, Mapping[str, Image.Image]]
"""A sample with its pictures: RGB, masks L, depth maps I;16."""

Arguments = dict[str, Any]

NO_ARGUMENTS = ("scheduler", "scheduler_options", "sld_preset")
"""Parameters that a pipeline is not called with: it is given its scheduler, and a preset's numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture that a call gave."""

    pixels: Pixels | None
    """None where latents came out instead."""
    latents: torch.Tensor | None = None
    """(channels, height, width), for the next step."""
    depth: Depth | None = None
    finite: bool
    """False where NaN or infinity came out."""


def check_pictures(sample: Sample, pictures: Mapping[str, Image.Image]) -> None:
    """RowError for what a pipeline would spoil without a word."""
    depth = pictures.get("depth_map")
    if depth is not None and sample.system.task == "depth2img":
        low, high = depth.getextrema()
        if low == high:
            # It is scaled by its range, so diffusers 0.42.1 gives NaN.
            raise RowError("constant_depth", "`depth_map` has the same depth everywhere")


def arguments(cohort: Cohort, decoded: Sequence[Decoded], pipeline: Any) -> Arguments:
    """Everything that the pipeline is called with."""
    rows = [sample.opened.row for sample, _ in decoded]
    found: Arguments = {
        name: value
        for name, value in cohort.parameters.items()
        if value is not None and name not in NO_ARGUMENTS
    }
    if "prompt" in cohort.system.texts:
        found["prompt"] = [row.texts["prompt"] for row in rows]
    if cohort.has_negative_prompt:
        found["negative_prompt"] = [row.texts["negative_prompt"] or "" for row in rows]
    if "prompt_2" in cohort.system.texts:
        # As XL itself does where the second one is missing, but row by row.
        found["prompt_2"] = [row.texts["prompt_2"] or row.texts["prompt"] for row in rows]
        if cohort.has_negative_prompt:
            found["negative_prompt_2"] = [
                row.texts["negative_prompt_2"] or row.texts["negative_prompt"] or "" for row in rows
            ]
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
    return change(found, cohort, pipeline) if change else found


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


def _ldm3d_upscale(found: Arguments, cohort: Cohort, pipeline: Any) -> Arguments:
    found["target_res"] = (found.pop("height"), found.pop("width"))
    # None where it is encoded already.
    found.setdefault("prompt", None)
    return found | {"rgb": found.pop("image"), "depth": found.pop("depth_map")}


ARGUMENTS: dict[str, Callable[[Arguments, Cohort, Any], Arguments]] = {
    "StableDiffusionInpaintPipeline": _inpaint,
    "StableDiffusionXLInpaintPipeline": _inpaint,
    "StableDiffusionDepth2ImgPipeline": _depth2img,
    "StableDiffusionUpscaleLDM3DPipeline": _ldm3d_upscale,
}


def pictures_of(output: Any, count: int, *, gives_latents: bool) -> list[Picture]:
    """What a pipeline gave, as bytes: rounded on the device as diffusers' own numpy_to_pil rounds."""
    images = output.rgb if hasattr(output, "rgb") else output.images
    if isinstance(images, list):
        return [Picture(pixels=np.asarray(image), finite=True) for image in images]
    if gives_latents:
        return [
            Picture(pixels=None, latents=latents, finite=finite)
            for latents, finite in zip(images, _finite(images).tolist(), strict=True)
        ]
    if isinstance(images, np.ndarray):
        # Safe, in diffusers 0.42.1, knows PIL pictures and numpy arrays only.
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    depth = getattr(output, "depth", None)
    finite = _finite(images) if depth is None else _finite(images) & _finite(depth)
    pixels = (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [
        Picture(pixels=picture, depth=depth, finite=is_finite)
        for picture, depth, is_finite in zip(pixels, _depths(depth, count), finite.tolist(), strict=True)
    ]


def _finite(values: torch.Tensor) -> torch.Tensor:
    return torch.isfinite(values).flatten(1).all(dim=1)


def _depths(depth: torch.Tensor | None, count: int) -> Sequence[Depth | None]:
    if depth is None:
        return [None] * count
    # torch has few operations on uint16; the round trip is exact.
    return list((depth.float() * 65535).round().to(torch.int32).cpu().numpy().astype(np.uint16))
