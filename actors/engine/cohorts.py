"""Cohorts: samples of one shard that can share one pipeline call.

A cohort's samples agree in everything that a diffusers call takes once: the pipeline, every scalar, the size
of the input images, which negative prompts are set, and the number of windows in which texts are encoded.
Prompts, images and generators may differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.engine.samples import Sample
from actors.rows.opened_rows import OpenedRow
from schemas.systems.parameters import ParameterValue
from schemas.systems.system_table import System


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Samples for one pipeline call."""

    model: str
    system: System
    parameters: Mapping[str, ParameterValue | None]
    sizes: Mapping[str, tuple[int, int]]
    """(width, height) of the input images, by field."""
    texts: tuple[str, ...]
    """The text fields that the call gets; see `Sample.texts`."""
    passes_latents_on: bool
    """Whether the next step takes this step's latents, which then are not decoded."""
    num_windows: int
    """The number of windows of 77 tokens in which each of its texts is encoded."""
    weighted: bool
    """Whether its texts have prompt weights. Without weights, and in one window, diffusers encodes them."""
    samples: Sequence[Sample]


_Parameters = tuple[tuple[str, ParameterValue | None], ...]
_Sizes = tuple[tuple[str, tuple[int, int]], ...]
_Key = tuple[str, str, _Parameters, _Sizes, tuple[str, ...], bool, int, bool]

_ALONE = (
    "padding_mask_crop",  # diffusers 0.42.1 inpaints a crop for only one image at a time.
    "control_mode",  # A union's pipelines take one image for each mode.
    "controls",  # With several ControlNets, XL's pipelines take one image for each of them.
    "negative_original_size",  # In a call for several rows, its XL text2img gives one row's to another.
)
"""Parameters with which a row gets a pipeline call of its own. Its module calls are merged all the same."""


def samples_of(rows: Sequence[OpenedRow]) -> list[Sample]:
    """The samples of these rows at the first step of their chains: one for each image of a row."""
    # num_images_per_prompt stays 1 in the call: above 1, diffusers 0.42.1 pairs images wrongly if a call has
    # several input images.
    return [Sample(opened=opened, image_index=j) for opened in rows for j in range(opened.row.num_images)]


def cut_into_cohorts(samples: Sequence[Sample], max_batch_rows: int) -> Iterator[Cohort]:
    """Cut a shard's samples into cohorts of at most `max_batch_rows` samples.

    The cut depends on the rows alone, not on time or on the machine, and so do the bits of the images.
    """
    groups: dict[_Key, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(_key(sample), []).append(sample)
    for key, group in sorted(groups.items(), key=_turn):
        size = 1 if any(group[0].parameters.get(name) is not None for name in _ALONE) else max_batch_rows
        for start in range(0, len(group), size):
            yield _cohort(key, group[start : start + size])


def _key(sample: Sample) -> _Key:
    return (
        sample.route.model,
        sample.system.task,
        tuple(sorted(sample.parameters.items())),
        tuple(sorted((field, (image.width, image.height)) for field, image in sample.images.items())),
        tuple(sample.texts),
        sample.passes_latents_on,
        sample.num_windows,
        sample.weighted,
    )


def _turn(item: tuple[_Key, list[Sample]]) -> tuple[float, float, float]:
    """The sort key of a group: by size, then by number of steps, the most first.

    Only images of one size share a batch. With the long groups first, few steps are left in which batches are
    not full when the last samples of a size end.
    """
    sample = item[1][0]
    image = sample.images.get("image")
    height = _number(sample, "height", image.height if image else 0)
    width = _number(sample, "width", image.width if image else 0)
    return height, width, -_number(sample, "num_inference_steps", 0) * _number(sample, "strength", 1)


def _number(sample: Sample, parameter: str, default: float) -> float:
    value = sample.parameters.get(parameter)
    return float(value) if isinstance(value, (int, float)) else default


def _cohort(key: _Key, samples: Sequence[Sample]) -> Cohort:
    model, _, parameters, sizes, texts, passes_latents_on, num_windows, weighted = key
    return Cohort(
        model=model,
        system=samples[0].system,
        parameters=dict(parameters),
        sizes=dict(sizes),
        texts=texts,
        passes_latents_on=passes_latents_on,
        num_windows=num_windows,
        weighted=weighted,
        samples=samples,
    )
