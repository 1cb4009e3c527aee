"""Input images are decoded before their call begins, and never many more of them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine.calls.decode_ahead import AHEAD_BYTES, DecodeAhead
from actors.engine.cohorts import Cohort
from schemas.systems.system_table import find_system

SIDE = 1024
IMAGE_BYTES = 4 * SIDE * SIDE


class NotingExecutor(Executor):
    """Decodes at once, and notes what."""

    def __init__(self) -> None:
        self.decoded: list[str] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done."""
        done: Future[Any] = Future()
        done.set_result(function(*args, **kwargs))
        self.decoded.append(done.result())
        return done


def cohorts(count: int, num_samples: int, taken: list[int], fields: tuple[str, ...]) -> Iterator[Cohort]:
    """Cohorts of samples with images of one size; the numbers of those that are taken are noted."""
    system = find_system("sd", "img2img")
    assert system is not None
    for number in range(count):
        taken.append(number)
        samples: list[Any] = [
            SimpleNamespace(
                images={
                    field: SimpleNamespace(decode=lambda name=f"{number}-{i}-{field}": name)
                    for field in fields
                }
            )
            for i in range(num_samples)
        ]
        yield Cohort(
            model="sd",
            system=system,
            parameters={},
            sizes=dict.fromkeys(fields, (SIDE, SIDE)),
            texts=(),
            passes_latents_on=False,
            num_windows=1,
            weighted=False,
            samples=samples,
        )


@pytest.mark.parametrize(("num_samples", "fields"), [(4, ("image",)), (2, ("image", "mask_image"))])
def test_images_are_decoded_ahead_as_far_as_memory_is_set_aside(
    num_samples: int, fields: tuple[str, ...]
) -> None:
    """All images of all samples of a cohort count; when one cohort is given out, the next is begun."""
    ahead = AHEAD_BYTES // (4 * IMAGE_BYTES)
    taken: list[int] = []
    decoders = NotingExecutor()
    decoding = DecodeAhead(cohorts(ahead + 3, num_samples, taken, fields), decoders)

    numbers = []
    begun = []
    while (cohort := decoding.next()) is not None:
        (_, first), *_ = cohort.samples
        numbers.append(int(str(first["image"].result()).partition("-")[0]))
        begun.append(len(taken))

    assert ahead == 16
    assert begun == [ahead, ahead + 1, ahead + 2, *[ahead + 3] * ahead]
    assert numbers == [*range(ahead + 3)]
    assert len(decoders.decoded) == len(set(decoders.decoded)) == 4 * (ahead + 3)


def test_a_cohort_larger_than_what_is_set_aside_is_decoded_alone() -> None:
    """The next one waits until it is given out."""
    taken: list[int] = []
    decoding = DecodeAhead(cohorts(3, 100, taken, ("image",)), NotingExecutor())

    decoding.next()

    assert taken == [0]
