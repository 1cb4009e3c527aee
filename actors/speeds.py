"""How fast a shard was: the seconds of the device, shared among the images that it generated in them."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from actors.engine.engine import DeviceUse, ModelSeconds
from actors.rows.denoising import denoising_of
from actors.rows.opened_rows import OpenedRow
from schemas.job import Job, Speed


class _Kind(NamedTuple):
    """What images have in common that take the same time for each step."""

    model: str
    task: str
    pixels: int


def speeds_of(
    opened: Iterable[OpenedRow], use: DeviceUse, earlier: Mapping[str, ModelSeconds], job: Job
) -> Iterator[Speed]:
    """Yield the speed of each kind of images of these rows. `earlier`: the device's seconds before them.

    Images of all sizes and tasks of a model are on the device together, so their seconds are shared: those
    of denoising by the pixels of all steps, which count twice with guidance, and the others by the pixels of
    the images. The work of a UNet and of a VAE grows with the pixels, but for that of attention.
    """
    images: Counter[_Kind] = Counter()
    steps: Counter[_Kind] = Counter()
    guided: Counter[_Kind] = Counter()
    for row in opened:
        for each in denoising_of(row):
            kind = _Kind(each.model, each.task, two_digits(each.pixels))
            images[kind] += row.row.num_images
            steps[kind] += row.row.num_images * each.steps
            guided[kind] += row.row.num_images * each.steps * each.guided
    weights: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for kind in images:
        weights[kind.model]["steps"] += (steps[kind] + guided[kind]) * kind.pixels
        weights[kind.model]["images"] += images[kind] * kind.pixels
    for kind in sorted(images):
        if not (all_seconds := use.seconds.get(kind.model)):
            continue
        seconds = all_seconds.since(earlier.get(kind.model, ModelSeconds()))
        of_model = weights[kind.model]
        yield Speed(
            device=use.name,
            num_cpus=use.num_cpus,
            checkpoint=job.models[kind.model].checkpoint,
            dtype=job.spec.models[kind.model].dtype,
            **kind._asdict(),
            images=images[kind],
            image_steps=steps[kind],
            guided_steps=guided[kind],
            step_seconds=seconds.steps * (steps[kind] + guided[kind]) * kind.pixels / of_model["steps"],
            image_seconds=seconds.images * images[kind] * kind.pixels / of_model["images"],
        )


def two_digits(number: int) -> int:
    """The number rounded to two significant digits: there are 90 of them up to each power of ten."""
    return round(number, 1 - math.floor(math.log10(number))) if number else 0
