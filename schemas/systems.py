"""The table from a checkpoint's family and a task to the diffusers pipeline that does it.

A new Stable Diffusion system is one more line in SYSTEMS (and, if its checkpoints are of a new kind, one
more line in actors/checkpoints.py, which names a checkpoint's family). Plan, routing, checks, worker and
output columns all read this table. Names only: the driver imports neither torch nor diffusers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from schemas.parameters import ParameterValue


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One thing that one family of checkpoints can do."""

    family: str
    """What a checkpoint was recognised as; see actors/checkpoints.py."""
    task: str
    """The generation task, as rows and routes name it."""
    pipeline: str
    """The diffusers class; it is built from the components of the family's checkpoint."""
    images: tuple[str, ...] = ()
    """Input fields that hold an image and must not be null."""
    defaults: Mapping[str, ParameterValue | None]
    """Every parameter the pipeline takes with its published default; None: the checkpoint decides."""


def _with(
    base: Mapping[str, ParameterValue | None], **changes: ParameterValue | None
) -> Mapping[str, ParameterValue | None]:
    return MappingProxyType({**base, **changes})


# diffusers 0.42.1, the defaults in each pipeline's __call__.
_IMG2IMG: Mapping[str, ParameterValue | None] = MappingProxyType(
    {
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "strength": 0.8,
        "eta": 0.0,
        "clip_skip": None,
        "scheduler": None,
    }
)
_SIZED: Mapping[str, ParameterValue | None] = MappingProxyType({"height": None, "width": None})
_TEXT2IMG = MappingProxyType(
    {name: value for name, value in {**_IMG2IMG, **_SIZED}.items() if name != "strength"}
)

SYSTEMS: tuple[System, ...] = (
    System(
        family="sd",
        task="text2img",
        pipeline="StableDiffusionPipeline",
        defaults=_with(_TEXT2IMG, guidance_rescale=0.0),
    ),
    System(
        family="sd",
        task="img2img",
        pipeline="StableDiffusionImg2ImgPipeline",
        images=("image",),
        defaults=_IMG2IMG,
    ),
    System(
        family="sd",
        task="inpaint",
        pipeline="StableDiffusionInpaintPipeline",
        images=("image", "mask_image"),
        defaults=_with(_IMG2IMG, strength=1.0),
    ),
    System(
        family="sd-inpaint",
        task="inpaint",
        pipeline="StableDiffusionInpaintPipeline",
        images=("image", "mask_image"),
        defaults=_with(_IMG2IMG, strength=1.0),
    ),
    System(
        family="sdxl",
        task="text2img",
        pipeline="StableDiffusionXLPipeline",
        defaults=_with(_TEXT2IMG, guidance_scale=5.0, guidance_rescale=0.0),
    ),
    System(
        family="sdxl",
        task="img2img",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        images=("image",),
        defaults=_with(_IMG2IMG, guidance_scale=5.0, strength=0.3, guidance_rescale=0.0),
    ),
    System(
        family="sdxl",
        task="inpaint",
        pipeline="StableDiffusionXLInpaintPipeline",
        images=("image", "mask_image"),
        defaults=_with(_IMG2IMG, strength=0.9999, guidance_rescale=0.0),
    ),
    System(
        family="sdxl-inpaint",
        task="inpaint",
        pipeline="StableDiffusionXLInpaintPipeline",
        images=("image", "mask_image"),
        defaults=_with(_IMG2IMG, strength=0.9999, guidance_rescale=0.0),
    ),
)

TASKS: tuple[str, ...] = tuple(dict.fromkeys(system.task for system in SYSTEMS))
"""Every task, in the table's order."""

_BY_FAMILY_AND_TASK = {(system.family, system.task): system for system in SYSTEMS}


def find_system(family: str, task: str) -> System | None:
    """The system with which checkpoints of `family` do `task`, or None where they cannot."""
    return _BY_FAMILY_AND_TASK.get((family, task))


def tasks_of(family: str) -> list[str]:
    """What checkpoints of `family` can do."""
    return [system.task for system in SYSTEMS if system.family == family]


def takes(task: str, parameter: str) -> bool:
    """Whether any system that does `task` has this parameter."""
    return any(parameter in system.defaults for system in SYSTEMS if system.task == task)
