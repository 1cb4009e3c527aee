"""Rows that can share one pipeline call, found within one shard.

A cohort's samples agree in everything that a diffusers call takes once: the pipeline, every scalar, the
input picture's size, which negative prompts there are, and in how many windows its texts are encoded.
Prompts, pictures and generators differ freely.
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
    """(width, height) of the input pictures, by field."""
    texts: tuple[str, ...]
    """The text fields that the call is given; see `Sample.texts`."""
    gives_latents: bool
    """Whether the latents go on to the next step as they are."""
    num_windows: int
    """Windows of tokens in which each of its texts is encoded."""
    weighted: bool
    """Whether its texts have weights in them. Without, and in one window, diffusers encodes them."""
    samples: Sequence[Sample]


_Parameters = tuple[tuple[str, ParameterValue | None], ...]
_Sizes = tuple[tuple[str, tuple[int, int]], ...]
_Key = tuple[str, str, _Parameters, _Sizes, tuple[str, ...], bool, int, bool]

_ALONE = (
    "padding_mask_crop",  # diffusers 0.42.1 paints a crop for one picture at a time only.
    "negative_original_size",  # It gives XL's text2img of several rows the one's negative sizes to another.
)
"""Parameters with which a row has a call to itself. Its module calls are merged all the same."""


def samples_of(rows: Sequence[OpenedRow]) -> list[Sample]:
    """The pictures that rows ask for, at the first step of their chains."""
    # num_images_per_prompt stays 1 in the call: with several input pictures, diffusers 0.42.1 pairs the
    # wrong ones above it.
    return [Sample(opened=opened, image_index=j) for opened in rows for j in range(opened.row.num_images)]


def cohorts(samples: Sequence[Sample], max_batch_rows: int) -> Iterator[Cohort]:
    """Cut a shard's samples into cohorts of at most `max_batch_rows`.

    The cut follows from the rows alone, never from time or place: so do the bits that come out.
    """
    groups: dict[_Key, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(_key(sample), []).append(sample)
    for key, group in sorted(groups.items(), key=_turn):
        together = 1 if any(group[0].parameters.get(name) is not None for name in _ALONE) else max_batch_rows
        for start in range(0, len(group), together):
            yield _cohort(key, group[start : start + together])


def _key(sample: Sample) -> _Key:
    return (
        sample.route.model,
        sample.system.task,
        tuple(sorted(sample.parameters.items())),
        tuple(sorted((field, (image.width, image.height)) for field, image in sample.images.items())),
        tuple(sample.texts),
        sample.hands_on_latents,
        sample.num_windows,
        sample.weighted,
    )


def _turn(item: tuple[_Key, list[Sample]]) -> tuple[float, float, float]:
    """Size after size, since only pictures of one size share a batch; the longest of each first: when the
    last ones run out, few steps are left in which batches are not full."""
    sample = item[1][0]
    if "image" in sample.images:
        height, width = float(sample.images["image"].height), float(sample.images["image"].width)
    else:
        height, width = _number(sample, "height", 0), _number(sample, "width", 0)
    return height, width, -_number(sample, "num_inference_steps", 0) * _number(sample, "strength", 1)


def _number(sample: Sample, parameter: str, otherwise: float) -> float:
    value = sample.parameters.get(parameter)
    return float(value) if isinstance(value, (int, float)) else otherwise


def _cohort(key: _Key, samples: Sequence[Sample]) -> Cohort:
    model, _, parameters, sizes, texts, gives_latents, num_windows, weighted = key
    return Cohort(
        model=model,
        system=samples[0].system,
        parameters=dict(parameters),
        sizes=dict(sizes),
        texts=texts,
        gives_latents=gives_latents,
        num_windows=num_windows,
        weighted=weighted,
        samples=samples,
    )
