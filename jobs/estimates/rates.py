"""How many seconds a device takes for a pixel of a model's images: measured, or guessed."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.estimates.published import PublishedGpu, has_published_size, published_rates
from schemas.job import Speed
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import ModelCard

SAME_SIZE = 1.05
"""Sizes that differ by no more than this factor are the same: pixels are recorded with two digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """By what factors the time that is expected may turn out shorter or longer."""

    least: float
    most: float


MEASURED = Spread(least=0.8, most=1.25)
"""That of the same model, task and size. A job's batches are fuller than a trial's, its machines busier."""
SCALED = Spread(least=0.6, most=1.7)
"""That of another size, or another task of the model."""
GUESSED = Spread(least=0.5, most=2.5)
"""That of published figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What one worker takes for the images of a kind."""

    seconds_a_pass: float
    """For one pixel, each time that the denoiser computes it: twice in a step with guidance."""
    seconds_an_image: float
    """For one pixel of an image, once."""
    spread: Spread
    caveat: str = ""
    """How the measured images differ from those that are asked for; empty if they do not."""
    is_guess: bool = False
    pixels: float | None = None
    """The pixels of the measured images, if their input decides them; None where the plan knows better."""


def measured_rate(
    speeds: Sequence[Speed], task: str, pixels: float, *, num_cpus: int, sized_by_input: bool
) -> Rate | None:
    """The rate of a model's images of this size, from speeds of that model; None if there are none.

    Speeds of the task go before those of others, and speeds of the size before those of others: what they
    took is scaled by pixels. `num_cpus`: the threads of a worker, if its CPUs compute; 0 for a GPU.
    """
    of_task = [speed for speed in speeds if speed.task == task]
    chosen = of_task or speeds
    if not chosen:
        return None
    caveat = "" if of_task else f"{task} was not measured, and counts as {chosen[0].task}"
    if sized_by_input:
        pixels = sum(each.pixels * each.images for each in chosen) / sum(each.images for each in chosen)
    else:
        nearest = min(chosen, key=lambda speed: _distance(speed.pixels, pixels))
        if _distance(nearest.pixels, pixels) > SAME_SIZE:
            caveat = caveat or f"{task} was measured at another size, and is scaled by pixels"
        chosen = [speed for speed in chosen if speed.pixels == nearest.pixels]
    # Threads share their work almost evenly, and never better.
    threads = [speed.num_cpus / num_cpus if num_cpus and speed.num_cpus else 1.0 for speed in chosen]
    passes = sum(speed.passes * speed.pixels for speed in chosen)
    images = sum(speed.images * speed.pixels for speed in chosen)
    step_seconds = sum(speed.step_seconds * share for speed, share in zip(chosen, threads, strict=True))
    image_seconds = sum(speed.image_seconds * share for speed, share in zip(chosen, threads, strict=True))
    return Rate(
        seconds_a_pass=step_seconds / passes if passes else 0.0,
        seconds_an_image=image_seconds / images if images else 0.0,
        spread=SCALED if caveat else MEASURED,
        caveat=caveat,
        pixels=pixels if sized_by_input else None,
    )


def _distance(a: float, b: float) -> float:
    """The factor between two sizes, at least 1."""
    return max(a, b) / max(1.0, min(a, b))


def guessed_rate(gpu: PublishedGpu, card: ModelCard) -> Rate | None:
    """The rate of a model on a GPU that it was not measured on; None for a model of another size."""
    if not has_published_size(card):
        return None
    of_pass, of_image = published_rates(gpu, card)
    return Rate(seconds_a_pass=of_pass, seconds_an_image=of_image, spread=GUESSED, is_guess=True)


def speeds_of_model(speeds: Sequence[Speed], card: ModelCard, spec: ModelSpec) -> list[Speed]:
    """The speeds of this checkpoint in this dtype, whatever the model was called."""
    return [each for each in speeds if (each.checkpoint, each.dtype) == (card.checkpoint, spec.dtype)]
