"""How much denoising rows ask for, as far as their parameters tell: of one row, or with arrays of many."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.inputs.input_file import RowBatch
from actors.rows.opened_rows import OpenedRow, work_sizes
from actors.rows.routing import ResolvedRoute
from actors.rows.step_sizes import Parameters, Size
from schemas.systems.parameters import with_preset

Number = float | npt.NDArray[np.float64]

STEP_PARAMETERS = ("num_inference_steps", "strength", "denoising_start", "denoising_end", "guidance_scale")
"""The parameters that decide how often the denoiser runs for an image."""


class Denoising(NamedTuple):
    """The denoising of one image in one step of its chain."""

    model: str
    task: str
    pixels: int
    """The pixels at which the model works."""
    steps: int
    guided: bool
    """Whether each step takes guidance, for which the denoiser computes twice as much."""


def num_steps(values: Mapping[str, Number]) -> npt.NDArray[np.float64]:
    """The denoising steps that run, at least 1; `values` has STEP_PARAMETERS, NaN for those that are not set.

    diffusers 0.42.1 cuts off the product of the steps and their share.
    """
    share = np.nan_to_num(values["strength"], nan=1.0)
    start, end = values["denoising_start"], np.nan_to_num(values["denoising_end"], nan=1.0)
    share = np.where(np.isnan(start), share, 1 - start) - (1 - end)
    # A share such as 0.3 is a little less than it reads.
    return np.fmax(1.0, np.floor(values["num_inference_steps"] * share + 1e-9))


def is_guided(values: Mapping[str, Number]) -> npt.NDArray[np.bool_]:
    """Whether there is guidance."""
    return np.asarray(values["guidance_scale"]) > 1


def denoising_of(opened: OpenedRow) -> Iterator[Denoising]:
    """Yield the denoising of each step of a row's chain."""
    works, _ = work_sizes(opened)
    for number, (step, (height, width)) in enumerate(zip(opened.route.steps, works, strict=True)):
        parameters = step.defaults if number else opened.row.parameters
        values = number_parameters(parameters)
        yield Denoising(
            model=step.model,
            task=step.system.task,
            pixels=int(height * width),
            steps=int(num_steps(values)),
            guided=bool(is_guided(values)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What one step of a chain has to do for all images of some rows."""

    task: str
    pixels: int
    """The pixels at which the model works, of all images. Where the input decides, they count as if they had
    the model's own size."""
    image_steps: int
    """The denoising steps of single images."""
    guided_steps: int
    """Those of them that have guidance."""

    def __add__(self, other: "StepWork") -> "StepWork":
        return StepWork(
            task=self.task,
            pixels=self.pixels + other.pixels,
            image_steps=self.image_steps + other.image_steps,
            guided_steps=self.guided_steps + other.guided_steps,
        )


def works_of(
    route: ResolvedRoute, results: Sequence[Size], num_images: int, first_steps: tuple[float, float]
) -> Iterator[StepWork]:
    """Yield the work of each step for rows whose images have these sizes after each step.

    `first_steps`: the denoising steps of the first step, in all and with guidance, which the rows decide.
    Those of later steps are their routes'.
    """
    for number, (step, result) in enumerate(zip(route.steps, results, strict=True)):
        image_steps, guided_steps = first_steps
        if number:
            asked = number_parameters(step.defaults)
            image_steps = num_images * float(num_steps(asked))
            guided_steps = image_steps * bool(is_guided(asked))
        yield StepWork(
            task=step.system.task,
            pixels=num_images * _work_pixels(step, result),
            image_steps=int(image_steps),
            guided_steps=int(guided_steps),
        )


def add_works(works: Sequence[StepWork], more: Iterable[StepWork]) -> tuple[StepWork, ...]:
    """The work of two groups of rows with the same steps; `works` may be empty."""
    return tuple(a + b for a, b in zip(works, more, strict=True)) if works else tuple(more)


def _work_pixels(route: ResolvedRoute, result: Size) -> int:
    """The pixels at which a step works whose result has this size."""
    return int(result[0] * result[1]) // route.system.scale**2


def step_parameters(batch: RowBatch, route: ResolvedRoute) -> dict[str, npt.NDArray[np.float64]]:
    """Each row's STEP_PARAMETERS: its own, else its recipe's, else the route's; NaN where none has it."""
    values = {
        name: _column(batch, name) if name in route.defaults else np.full(batch.num_rows, np.nan)
        for name in STEP_PARAMETERS
    }
    recipes = batch.fields.get("recipe") if "recipe" in route.defaults else None
    for recipe in recipes.unique().drop_null().to_pylist() if recipes is not None else ():
        has_it = pc.equal(recipes, recipe).fill_null(False).to_numpy(zero_copy_only=False)
        for name, value in number_parameters(with_preset({"recipe": recipe})).items():
            values[name] = np.where(has_it & np.isnan(values[name]), value, values[name])
    of_route = number_parameters(route.defaults)
    return {name: np.where(np.isnan(each), of_route[name], each) for name, each in values.items()}


def _column(batch: RowBatch, name: str) -> npt.NDArray[np.float64]:
    """Each row's number in this field; NaN where the row has none."""
    column = batch.fields.get(name)
    if column is None:
        return np.full(batch.num_rows, np.nan)
    numbers = column.cast(pa.float64(), safe=False).fill_null(np.nan)
    return np.asarray(numbers.to_numpy(zero_copy_only=False))


def number_parameters(parameters: Parameters) -> dict[str, float]:
    """The STEP_PARAMETERS of one row or route; NaN for those that are not set."""
    return {
        name: float(value) if isinstance(value := parameters.get(name), (int, float)) else np.nan
        for name in STEP_PARAMETERS
    }
