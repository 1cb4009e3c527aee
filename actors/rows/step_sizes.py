"""The sizes at which the steps of a chain work, and those of their results.

A size is that of one row, or of all rows of a batch: then a side is an array, with NaN where it is not known.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from actors.rows.routing import ResolvedRoute
from schemas.systems.parameters import ParameterValue
from schemas.systems.system_table import System

Side = float | npt.NDArray[np.float64]
Size = tuple[Side, Side]
"""(height, width) of an image, in pixels."""
Parameters = Mapping[str, ParameterValue | None]


def work_size(parameters: Parameters, given: Size) -> Size:
    """The size at which a step works: that of its parameters, or else that of the image it is given."""
    height, width = parameters.get("height"), parameters.get("width")
    return (
        given[0] if height is None else float(str(height)),
        given[1] if width is None else float(str(width)),
    )


def is_cropped(parameters: Parameters) -> bool:
    """Whether a step works on a crop of its image only, which it pastes back: its image keeps its size."""
    return parameters.get("padding_mask_crop") is not None


def result_size(system: System, parameters: Parameters, given: Size) -> Size:
    """The size of a step's result."""
    if is_cropped(parameters):
        return given
    height, width = work_size(parameters, given)
    return height * system.scale, width * system.scale


def result_sizes(route: ResolvedRoute, size: Size) -> list[Size]:
    """The sizes of the results of all steps; `size` is that of the first step's."""
    sizes = [size]
    for step in route.then:
        sizes.append(result_size(step.system, step.defaults, sizes[-1]))
    return sizes


def later_sizes(route: ResolvedRoute, size: Size) -> list[Size]:
    """The sizes at which the later steps work, and then that of the last result.

    `size` is that of the first step's result. The list has one size if there are no later steps.
    """
    *given, last = result_sizes(route, size)
    return [*(work_size(step.defaults, each) for step, each in zip(route.then, given, strict=True)), last]
