"""The table from a checkpoint's family and a task to the diffusers pipeline that does it.

A new Stable Diffusion system is one more entry in SYSTEMS, and a file of actors/ where diffusers has not its
pipeline. Plan, routing, checks, worker and output columns all read this table. docs/systems.md shows the way.
Names only: the driver imports neither torch nor diffusers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from schemas.systems.parameters import SLD_PRESETS, ParameterValue

Defaults = Mapping[str, ParameterValue | None]
"""Parameters by name with their published defaults; None: the checkpoint decides."""

LEAST_SIZE_FACTOR = 8
"""What diffusers 0.42.1's pipelines divide heights and widths by, also where a VAE halves them only twice."""

PROMPTS = ("prompt", "negative_prompt")
XL_PROMPTS = (*PROMPTS, "prompt_2", "negative_prompt_2")


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One thing that one family of checkpoints can do."""

    family: str
    """What a checkpoint was recognised as; see actors/checkpoints/model_cards.py."""
    task: str
    """The generation task, as rows and routes name it."""
    pipeline: str
    """The class, built from the components of the checkpoint."""
    module: str = "diffusers"
    """Where the class is."""
    checkpoints: tuple[tuple[str, int], ...] = ()
    """(`_class_name`, the UNet's in_channels) by which a checkpoint is known for one of the family; one of a
    family's systems says it for all."""
    texts: tuple[str, ...] = PROMPTS
    """Text fields that the pipeline takes. Where `prompt` is among them, a row must have one."""
    images: tuple[str, ...] = ()
    """Input fields that hold a picture and must not be null."""
    optional_images: tuple[str, ...] = ()
    """Input fields that hold a picture and may be null."""
    gives_depth: bool = False
    """Whether a depth map comes out beside the picture."""
    gives_latents: bool = True
    """Whether its pipeline can stop before it decodes; Safe's (diffusers 0.42.1) cannot."""
    scale: int = 1
    """How many times larger than the input picture the output is."""
    image_multiple: int = 1
    """What the input picture's sides must be multiples of, where the pipeline would not make them so."""
    rounds_image_down: bool = False
    """Whether it cuts the input picture's sides down to multiples of the VAE's factor: less is nothing."""
    schedulers: frozenset[str] | None = None
    """The only schedulers it runs with; None: all that fit the checkpoint's own."""
    defaults: Defaults = field(default_factory=dict)
    """Every parameter the pipeline takes."""


def _frozen(*parts: Defaults, **changes: ParameterValue | None) -> Defaults:
    merged: dict[str, ParameterValue | None] = {}
    for part in parts:
        merged |= part
    return MappingProxyType(merged | changes)


# diffusers 0.42.1, the defaults in each pipeline's __call__.
_SCHEDULER: Defaults = {"scheduler": None, "scheduler_options": None}
_STEPS: Defaults = {"num_inference_steps": 50, "guidance_scale": 7.5, "eta": 0.0, **_SCHEDULER}
_SIZE: Defaults = {"height": None, "width": None}
_CLIP: Defaults = {"clip_skip": None}
_SLD: Defaults = {"sld_preset": None, **SLD_PRESETS["medium"]}
_SAFE = _frozen(_STEPS, _SIZE, _SLD)
_UPSCALE: Defaults = {"num_inference_steps": 75, "guidance_scale": 9.0, "noise_level": 20}
_XL: Defaults = {
    "guidance_rescale": 0.0,
    "denoising_end": None,
    "original_size": None,
    "crops_coords_top_left": (0, 0),
    "target_size": None,
    "negative_original_size": None,
    "negative_crops_coords_top_left": (0, 0),
    "negative_target_size": None,
}
_XL_IMAGE: Defaults = _frozen(
    _STEPS, _CLIP, _XL, denoising_start=None, aesthetic_score=6.0, negative_aesthetic_score=2.5
)
_INPAINT = _frozen(_STEPS, _CLIP, strength=1.0, padding_mask_crop=None)
_XL_IMG2IMG = _frozen(_XL_IMAGE, guidance_scale=5.0, strength=0.3)
_XL_INPAINT = _frozen(_XL_IMAGE, strength=0.9999, padding_mask_crop=None)
_MASKED = ("image", "mask_image")


def _each(pipelines: tuple[str, ...], channels: int) -> tuple[tuple[str, int], ...]:
    return tuple((pipeline, channels) for pipeline in pipelines)


_SD_CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
_XL_CLASSES = (
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)

SYSTEMS: tuple[System, ...] = (
    System(
        family="sd",
        task="text2img",
        pipeline="StableDiffusionPipeline",
        checkpoints=_each(_SD_CLASSES, 4),
        defaults=_frozen(_STEPS, _CLIP, _SIZE, guidance_rescale=0.0),
    ),
    System(
        family="sd",
        task="img2img",
        pipeline="StableDiffusionImg2ImgPipeline",
        images=("image",),
        rounds_image_down=True,
        defaults=_frozen(_STEPS, _CLIP, strength=0.8),
    ),
    System(
        family="sd",
        task="inpaint",
        pipeline="StableDiffusionInpaintPipeline",
        images=_MASKED,
        defaults=_INPAINT,
    ),
    System(
        family="sd-inpaint",
        task="inpaint",
        pipeline="StableDiffusionInpaintPipeline",
        checkpoints=_each(_SD_CLASSES, 9),
        images=_MASKED,
        defaults=_INPAINT,
    ),
    # Safe guidance is a way of sampling: it runs on the components of any Stable Diffusion checkpoint.
    System(
        family="sd", task="safe", pipeline="StableDiffusionPipelineSafe", gives_latents=False, defaults=_SAFE
    ),
    System(
        family="safe",
        task="safe",
        pipeline="StableDiffusionPipelineSafe",
        checkpoints=(("StableDiffusionPipelineSafe", 4),),
        defaults=_SAFE,
    ),
    System(family="safe", task="text2img", pipeline="StableDiffusionPipelineSafe", defaults=_SAFE),
    System(
        family="depth2img",
        task="depth2img",
        pipeline="StableDiffusionDepth2ImgPipeline",
        checkpoints=(("StableDiffusionDepth2ImgPipeline", 5),),
        images=("image",),
        rounds_image_down=True,
        optional_images=("depth_map",),
        defaults=_frozen(_STEPS, _CLIP, strength=0.8),
    ),
    System(
        family="variation",
        task="variation",
        pipeline="StableDiffusionImageVariationPipeline",
        checkpoints=(("StableDiffusionImageVariationPipeline", 4),),
        texts=(),
        images=("image",),
        defaults=_frozen(_STEPS, _SIZE),
    ),
    System(
        family="upscale",
        task="upscale",
        pipeline="StableDiffusionUpscalePipeline",
        checkpoints=(("StableDiffusionUpscalePipeline", 7),),
        images=("image",),
        rounds_image_down=True,
        scale=4,
        defaults=_frozen(_STEPS, _CLIP, _UPSCALE),
    ),
    System(
        family="latent-upscale",
        task="latent_upscale",
        pipeline="StableDiffusionLatentUpscalePipeline",
        checkpoints=(("StableDiffusionLatentUpscalePipeline", 8),),
        images=("image",),
        scale=2,
        image_multiple=64,
        # It computes on the scheduler's sigmas: others have none, or (the DPM family) scale latents by them.
        schedulers=frozenset({"EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"}),
        defaults=_frozen(_SCHEDULER, num_inference_steps=75, guidance_scale=9.0),
    ),
    System(
        family="ldm3d",
        task="ldm3d",
        pipeline="StableDiffusionLDM3DPipeline",
        checkpoints=(("StableDiffusionLDM3DPipeline", 4),),
        gives_depth=True,
        defaults=_frozen(
            _STEPS, _CLIP, _SIZE, num_inference_steps=49, guidance_scale=5.0, guidance_rescale=0.0
        ),
    ),
    System(
        family="ldm3d-upscale",
        task="ldm3d_upscale",
        pipeline="StableDiffusionUpscaleLDM3DPipeline",
        module="actors.engine.quirks.ldm3d_upscale",
        checkpoints=(("StableDiffusionUpscaleLDM3DPipeline", 8),),
        images=("image", "depth_map"),
        gives_depth=True,
        # The published pipeline's target_res.
        defaults=_frozen(_STEPS, _CLIP, _UPSCALE, height=1024, width=1024),
    ),
    System(
        family="sdxl",
        task="text2img",
        pipeline="StableDiffusionXLPipeline",
        checkpoints=_each(_XL_CLASSES, 4),
        texts=XL_PROMPTS,
        defaults=_frozen(_STEPS, _CLIP, _SIZE, _XL, guidance_scale=5.0),
    ),
    System(
        family="sdxl",
        task="img2img",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        texts=XL_PROMPTS,
        images=("image",),
        rounds_image_down=True,
        defaults=_XL_IMG2IMG,
    ),
    System(
        family="sdxl",
        task="inpaint",
        pipeline="StableDiffusionXLInpaintPipeline",
        texts=XL_PROMPTS,
        images=_MASKED,
        defaults=_XL_INPAINT,
    ),
    System(
        family="sdxl-refiner",
        task="img2img",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        texts=XL_PROMPTS,
        images=("image",),
        rounds_image_down=True,
        defaults=_XL_IMG2IMG,
    ),
    System(
        family="sdxl-inpaint",
        task="inpaint",
        pipeline="StableDiffusionXLInpaintPipeline",
        checkpoints=_each(_XL_CLASSES, 9),
        texts=XL_PROMPTS,
        images=_MASKED,
        defaults=_XL_INPAINT,
    ),
)

FAMILIES: dict[tuple[str, int], str] = {
    checkpoint: system.family for system in SYSTEMS for checkpoint in system.checkpoints
}
"""(`_class_name`, the UNet's in_channels) of a checkpoint, to the family whose tasks SYSTEMS lists."""

SD_LATENTS = frozenset({"sd", "sd-inpaint", "depth2img"})
"""Families whose latents the latent upscaler was trained on."""

TASKS: tuple[str, ...] = tuple(dict.fromkeys(system.task for system in SYSTEMS))
"""Every task, in the table's order."""

_MODULES = {system.pipeline: system.module for system in SYSTEMS}

_BY_FAMILY_AND_TASK = {(system.family, system.task): system for system in SYSTEMS}


def find_system(family: str, task: str) -> System | None:
    """The system with which checkpoints of `family` do `task`, or None where they cannot."""
    return _BY_FAMILY_AND_TASK.get((family, task))


def module_of(pipeline: str) -> str:
    """Where a pipeline's class is."""
    return _MODULES.get(pipeline, "diffusers")


def tasks_of(family: str) -> list[str]:
    """What checkpoints of `family` can do."""
    return [system.task for system in SYSTEMS if system.family == family]


def takes(task: str, parameter: str) -> bool:
    """Whether any system that does `task` has this parameter."""
    return any(parameter in system.defaults for system in SYSTEMS if system.task == task)
