"""How much denoising rows ask for, as far as their parameters tell: of one row, or with arrays of many."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from actors.rows.opened_rows import OpenedRow, work_sizes

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
        values = {name: _number(parameters.get(name)) for name in STEP_PARAMETERS}
        yield Denoising(
            model=step.model,
            task=step.system.task,
            pixels=int(height * width),
            steps=int(num_steps(values)),
            guided=bool(is_guided(values)),
        )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else np.nan
