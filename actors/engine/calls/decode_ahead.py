"""Input images, decoded on other threads ahead of the cohorts that need them."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from PIL import Image

from actors.engine.cohorts import Cohort
from actors.engine.samples import Sample

AHEAD_BYTES = 256 << 20
"""Decoding begins for cohorts ahead until their images reach this size. The next cohort may be larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """A cohort whose images are being decoded."""

    cohort: Cohort
    samples: Sequence[tuple[Sample, Mapping[str, "Future[Image.Image]"]]]
    """The cohort's samples, with their images by field."""
    size_bytes: int
    """The size of all its images once they are decoded, roughly."""


class DecodeAhead:
    """Gives cohorts out one by one, and decodes the images of those that come next."""

    def __init__(self, cohorts: Iterator[Cohort], decoders: Executor) -> None:
        self._cohorts = cohorts
        self.decoders = decoders
        self._begun: deque[Decoding] = deque()

    def next(self) -> Decoding | None:
        """The next cohort; None after the last."""
        while sum(decoding.size_bytes for decoding in self._begun) < AHEAD_BYTES:
            cohort = next(self._cohorts, None)
            if cohort is None:
                break
            self._begun.append(self._begin(cohort))
        return self._begun.popleft() if self._begun else None

    def _begin(self, cohort: Cohort) -> Decoding:
        samples = [
            (sample, {field: self.decoders.submit(image.decode) for field, image in sample.images.items()})
            for sample in cohort.samples
        ]
        # Four bytes a pixel, and a little for each sample, so that cohorts without images are limited too.
        size = sum(4 * width * height for width, height in cohort.sizes.values()) + 4096
        return Decoding(cohort=cohort, samples=samples, size_bytes=size * len(samples))
