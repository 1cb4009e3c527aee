"""The table that maps a checkpoint's family and a task to the diffusers pipeline that does it.

A new Stable Diffusion system is one more entry in SYSTEMS, and a file of actors/ if diffusers lacks its
pipeline. docs/systems.md explains how to add one. The plan, routing, checks, workers and output columns all
read this table. Classes are only named, because the driver imports neither torch nor diffusers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from schemas.systems.adapter_weights import NO_WEIGHTS
from schemas.systems.control_parameters import CONTROL, CONTROL_IMAGES
from schemas.systems.image_prompts import IMAGE_PROMPT, IP_ADAPTER
from schemas.systems.parameters import SLD_PRESETS, ParameterValue

Defaults = Mapping[str, ParameterValue | None]
"""Parameters by name, with their published defaults; None: the checkpoint decides."""

LEAST_SIZE_FACTOR = 8
"""diffusers 0.42.1's pipelines divide heights and widths by this, even if a VAE halves them only twice."""

PROMPTS = ("prompt", "negative_prompt")
XL_PROMPTS = (*PROMPTS, "prompt_2", "negative_prompt_2")


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One task that one family of checkpoints can do, and the pipeline that does it."""

    family: str
    """The family that a checkpoint was recognised as; see actors/checkpoints/model_cards.py."""
    task: str
    """The generation task, as rows and routes name it."""
    pipeline: str
    """The name of the pipeline's class, which is built from the components of the checkpoint."""
    module: str = "diffusers"
    """The module that contains the class."""
    checkpoints: tuple[tuple[str, int], ...] = ()
    """The pairs (`_class_name`, in_channels of the UNet) of the family's checkpoints. Only one system of each
    family has them."""
    texts: tuple[str, ...] = PROMPTS
    """The text fields that the pipeline takes. If `prompt` is one of them, a row must have a prompt."""
    images: tuple[str, ...] = ()
    """The image fields that a row must have."""
    optional_images: tuple[str, ...] = ()
    """The image fields that may be null in a row."""
    gives_depth: bool = False
    """Whether the pipeline returns a depth map with the image."""
    gives_latents: bool = True
    """Whether the pipeline can return latents instead of an image; Safe's (diffusers 0.42.1) cannot."""
    scale: int = 1
    """The sides of the result, divided by those of the input image."""
    image_multiple: int = 1
    """The number of which the input image's sides must be multiples, if the pipeline does not round them."""
    rounds_image_down: bool = False
    """Whether the pipeline rounds the input image's sides down to multiples of the VAE's factor. A shorter
    side would become 0."""
    resizes_image: bool = False
    """Whether `height` and `width` resize the input image. Without them, the image has its own size."""
    control_pipeline: str = ""
    """The class of the same pipeline with ControlNets; empty if there is none."""
    union_pipeline: str = ""
    """The class of the same pipeline with a union of ControlNets; empty if there is none."""
    lost_with_control: tuple[str, ...] = ()
    """The parameters that `control_pipeline` and `union_pipeline` do not take."""
    schedulers: frozenset[str] | None = None
    """The only schedulers that the pipeline works with; None: all that fit the checkpoint's own."""
    defaults: Defaults = field(default_factory=dict)
    """Every parameter that the pipeline takes, with its default."""

    @property
    def takes_embeddings(self) -> bool:
        """Whether the pipeline reads learned tokens: in diffusers 0.42.1, each that loads LoRAs does."""
        return "loras" in self.defaults


def _frozen(*parts: Defaults, **changes: ParameterValue | None) -> Defaults:
    merged: dict[str, ParameterValue | None] = {}
    for part in parts:
        merged |= part
    return MappingProxyType(merged | changes)


# These are the defaults in each pipeline's __call__ in diffusers 0.42.1.
_SCHEDULER: Defaults = {"scheduler": None, "scheduler_options": None}
_STEPS: Defaults = {"num_inference_steps": 50, "guidance_scale": 7.5, "eta": 0.0, **_SCHEDULER}
_SIZE: Defaults = {"height": None, "width": None}
_CLIP: Defaults = {"clip_skip": None}
# Only pipelines with a StableDiffusionLoraLoaderMixin or StableDiffusionXLLoraLoaderMixin have this.
_LORAS: Defaults = {"recipe": None, "loras": NO_WEIGHTS}
# These pipelines have an IPAdapterMixin, and a sibling with ControlNets.
_GUIDES: Defaults = {**CONTROL, **IP_ADAPTER}
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
    _STEPS, _CLIP, _LORAS, _XL, denoising_start=None, aesthetic_score=6.0, negative_aesthetic_score=2.5
)
_INPAINT = _frozen(
    *(_STEPS, _CLIP, _LORAS, _GUIDES, _SIZE),
    strength=1.0,
    padding_mask_crop=None,
    controlnet_conditioning_scale=0.5,
)
_XL_IMG2IMG = _frozen(_XL_IMAGE, guidance_scale=5.0, strength=0.3)
_XL_INPAINT = _frozen(_XL_IMAGE, _GUIDES, _SIZE, strength=0.9999, padding_mask_crop=None)
_XL_NEGATIVE_SIZES = tuple(name for name in _XL if name.startswith("negative"))
_MASKED = ("image", "mask_image")
_GUIDING_IMAGES = (*CONTROL_IMAGES, IMAGE_PROMPT)


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
        optional_images=_GUIDING_IMAGES,
        control_pipeline="StableDiffusionControlNetPipeline",
        lost_with_control=("guidance_rescale",),
        defaults=_frozen(_STEPS, _CLIP, _LORAS, _GUIDES, _SIZE, guidance_rescale=0.0),
    ),
    System(
        family="sd",
        task="img2img",
        pipeline="StableDiffusionImg2ImgPipeline",
        images=("image",),
        rounds_image_down=True,
        optional_images=_GUIDING_IMAGES,
        control_pipeline="StableDiffusionControlNetImg2ImgPipeline",
        defaults=_frozen(*(_STEPS, _CLIP, _LORAS, _GUIDES), strength=0.8, controlnet_conditioning_scale=0.8),
    ),
    System(
        family="sd",
        task="inpaint",
        pipeline="StableDiffusionInpaintPipeline",
        images=_MASKED,
        resizes_image=True,
        optional_images=_GUIDING_IMAGES,
        control_pipeline="StableDiffusionControlNetInpaintPipeline",
        defaults=_INPAINT,
    ),
    System(
        family="sd-inpaint",
        task="inpaint",
        pipeline="StableDiffusionInpaintPipeline",
        checkpoints=_each(_SD_CLASSES, 9),
        images=_MASKED,
        resizes_image=True,
        optional_images=_GUIDING_IMAGES,
        control_pipeline="StableDiffusionControlNetInpaintPipeline",
        defaults=_INPAINT,
    ),
    # Safe guidance is a sampling method: it works with the components of any Stable Diffusion checkpoint.
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
        defaults=_frozen(_STEPS, _CLIP, _LORAS, strength=0.8),
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
        defaults=_frozen(_STEPS, _CLIP, _LORAS, _UPSCALE),
    ),
    System(
        family="latent-upscale",
        task="latent_upscale",
        pipeline="StableDiffusionLatentUpscalePipeline",
        checkpoints=(("StableDiffusionLatentUpscalePipeline", 8),),
        images=("image",),
        scale=2,
        image_multiple=64,
        # The pipeline computes with sigmas: other schedulers have none, or (DPM) scale latents by them.
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
            _STEPS, _CLIP, _LORAS, _SIZE, num_inference_steps=49, guidance_scale=5.0, guidance_rescale=0.0
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
        # The size is target_res of the published pipeline.
        defaults=_frozen(_STEPS, _CLIP, _UPSCALE, height=1024, width=1024),
    ),
    System(
        family="sdxl",
        task="text2img",
        pipeline="StableDiffusionXLPipeline",
        checkpoints=_each(_XL_CLASSES, 4),
        texts=XL_PROMPTS,
        optional_images=_GUIDING_IMAGES,
        control_pipeline="StableDiffusionXLControlNetPipeline",
        union_pipeline="StableDiffusionXLControlNetUnionPipeline",
        lost_with_control=("guidance_rescale",),
        defaults=_frozen(_STEPS, _CLIP, _LORAS, _GUIDES, _SIZE, _XL, guidance_scale=5.0),
    ),
    System(
        family="sdxl",
        task="img2img",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        texts=XL_PROMPTS,
        images=("image",),
        rounds_image_down=True,
        optional_images=_GUIDING_IMAGES,
        control_pipeline="StableDiffusionXLControlNetImg2ImgPipeline",
        union_pipeline="StableDiffusionXLControlNetUnionImg2ImgPipeline",
        lost_with_control=("guidance_rescale", "denoising_start", "denoising_end"),
        defaults=_frozen(_XL_IMG2IMG, _GUIDES, controlnet_conditioning_scale=0.8),
    ),
    System(
        family="sdxl",
        task="inpaint",
        pipeline="StableDiffusionXLInpaintPipeline",
        texts=XL_PROMPTS,
        images=_MASKED,
        resizes_image=True,
        optional_images=_GUIDING_IMAGES,
        control_pipeline="StableDiffusionXLControlNetInpaintPipeline",
        union_pipeline="StableDiffusionXLControlNetUnionInpaintPipeline",
        lost_with_control=_XL_NEGATIVE_SIZES,
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
        resizes_image=True,
        optional_images=_GUIDING_IMAGES,
        control_pipeline="StableDiffusionXLControlNetInpaintPipeline",
        union_pipeline="StableDiffusionXLControlNetUnionInpaintPipeline",
        lost_with_control=_XL_NEGATIVE_SIZES,
        defaults=_XL_INPAINT,
    ),
)

FAMILIES: dict[tuple[str, int], str] = {
    checkpoint: system.family for system in SYSTEMS for checkpoint in system.checkpoints
}
"""Maps (`_class_name`, in_channels of the UNet) of a checkpoint to its family, whose tasks SYSTEMS lists."""

SD_LATENTS = frozenset({"sd", "sd-inpaint", "depth2img"})
"""The families on whose latents the latent upscaler was trained."""

TASKS: tuple[str, ...] = tuple(dict.fromkeys(system.task for system in SYSTEMS))
"""Every task, in the table's order."""

_MODULES = {system.pipeline: system.module for system in SYSTEMS}

_BY_FAMILY_AND_TASK = {(system.family, system.task): system for system in SYSTEMS}


def find_system(family: str, task: str) -> System | None:
    """The system with which checkpoints of `family` do `task`, or None if they cannot do it."""
    return _BY_FAMILY_AND_TASK.get((family, task))


def module_of(pipeline: str) -> str:
    """The module that contains a pipeline's class."""
    return _MODULES.get(pipeline, "diffusers")


def tasks_of(family: str) -> list[str]:
    """The tasks that checkpoints of `family` can do."""
    return [system.task for system in SYSTEMS if system.family == family]


def takes(task: str, parameter: str) -> bool:
    """Whether any system that does `task` has this parameter."""
    return any(parameter in system.defaults for system in SYSTEMS if system.task == task)
