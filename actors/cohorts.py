"""Rows that can share one pipeline call, found within one shard.

A cohort's samples agree in everything that a diffusers call takes once: the pipeline, every scalar, the
input picture's size, and whether there is a negative prompt. Prompts, pictures and generators differ freely.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.input_images import EncodedImage
from actors.rows import Row
from schemas.parameters import ParameterValue
from schemas.systems import System


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRow:
    """A row that can be made, with its pictures' headers read."""

    row: Row
    images: Mapping[str, EncodedImage]
    """By field; all that the row's pipeline needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture to be made: a row asks for one or more."""

    opened: OpenedRow
    image_index: int

    @property
    def seed(self) -> int:
        """Image j of a row uses the row's seed + j."""
        return self.opened.row.seed + self.image_index


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Samples for one pipeline call."""

    model: str
    system: System
    parameters: Mapping[str, ParameterValue | None]
    sizes: Mapping[str, tuple[int, int]]
    """(width, height) of the input pictures, by field."""
    has_negative_prompt: bool
    """False: diffusers gets None, which some pipelines (XL) treat differently from an empty text."""
    samples: Sequence[Sample]


_Parameters = tuple[tuple[str, ParameterValue | None], ...]
_Sizes = tuple[tuple[str, tuple[int, int]], ...]
_Key = tuple[str, str, _Parameters, _Sizes, bool]


def cohorts(rows: Sequence[OpenedRow], max_batch_rows: int) -> Iterator[Cohort]:
    """Cut a shard's rows into cohorts of at most `max_batch_rows` samples.

    The cut follows from the rows alone, never from time or place: so do the bits that come out.
    """
    groups: dict[_Key, list[Sample]] = {}
    for opened in rows:
        samples = groups.setdefault(_key(opened), [])
        # num_images_per_prompt stays 1 in the call: with several input pictures, diffusers 0.42.1 pairs the
        # wrong ones above it.
        samples += [Sample(opened=opened, image_index=j) for j in range(opened.row.num_images)]
    for key, samples in groups.items():
        # diffusers 0.42.1 paints a crop for one picture at a time only.
        together = 1 if dict(key[2]).get("padding_mask_crop") is not None else max_batch_rows
        for start in range(0, len(samples), together):
            yield _cohort(key, samples[start : start + together])


def _key(opened: OpenedRow) -> _Key:
    row, system = opened.row, opened.row.routed.system
    assert system is not None, "rows with a problem are kept away from the engine"
    return (
        row.routed.model,
        system.task,
        tuple(sorted(row.parameters.items())),
        tuple(sorted((field, (image.width, image.height)) for field, image in opened.images.items())),
        any(
            row.texts[name] is not None
            for name in ("negative_prompt", "negative_prompt_2")
            if name in system.texts
        ),
    )


def _cohort(key: _Key, samples: Sequence[Sample]) -> Cohort:
    model, _, parameters, sizes, has_negative_prompt = key
    system = samples[0].opened.row.routed.system
    assert system is not None, "see _key"
    return Cohort(
        model=model,
        system=system,
        parameters=dict(parameters),
        sizes=dict(sizes),
        has_negative_prompt=has_negative_prompt,
        samples=samples,
    )
