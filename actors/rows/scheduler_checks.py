"""Whether each row's scheduler fits its model, its options and its steps."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from actors.inputs.input_file import RowBatch
from actors.rows.routing import ResolvedRoute
from actors.rows.row_values import RowMask, Violation, coded_values, effective_values
from schemas.systems.model_card import ModelCard
from schemas.systems.parameters import PARAMETERS
from schemas.systems.sampler_names import reading
from schemas.systems.scheduler_rules import Published, refusal
from schemas.systems.system_table import System


def refused_schedulers(batch: RowBatch, route: ResolvedRoute, card: ModelCard) -> Iterator[Violation]:
    """The violation that rows commit whose scheduler does not fit.

    Each combination of scheduler, options and number of steps is judged once, however many rows have it.
    """
    names = coded_values(batch, route, "scheduler")
    options = coded_values(batch, route, "scheduler_options")
    values = effective_values(batch, route, "num_inference_steps")
    assert values is not None, "every pipeline has a published default"
    # Numbers out of bounds are clipped here, because another rule refuses them.
    most = int(PARAMETERS["num_inference_steps"].maximum)
    steps = np.clip(np.nan_to_num(values, nan=1), 1, most).astype(np.int64)
    late = _begins_late(batch, route, steps)
    shape = (len(names.values), len(options.values), most + 1, 2)
    codes = np.ravel_multi_index((names.codes, options.codes, steps, late.astype(np.int64)), shape)
    distinct, positions = np.unique(codes, return_inverse=True)
    published = published_scheduler(card, route.system)
    combinations = np.stack(np.unravel_index(distinct, shape), axis=1).tolist()

    def reason_of(name: int, text: int, num_steps: int, is_late: int, *, with_options: bool = True) -> str:
        """Why rows with this combination are refused; empty if they are not."""
        own_name, route_options = name < len(names.values) - 1, text == len(options.values) - 1
        given = options.values[text] if with_options else None
        # The name that a row has itself wins over the options of its route.
        name_wins = own_name and route_options
        scheduler = names.values[name] or ""
        return refusal(scheduler, given, published, num_steps, bool(is_late), name_wins) or ""

    reasons = [reason_of(*combination) for combination in combinations]
    refused = np.array([bool(reason) for reason in reasons], dtype=bool)

    def describe(row: int) -> str:
        reason: str = reasons[positions[row]]
        mixed = names.is_own(row) and not options.is_own(row) and options.values[-1] is not None
        if mixed and not reason_of(*combinations[positions[row]], with_options=False):
            reason += (
                ". The options come from the route; set scheduler_options to {} for a row without options"
            )
        return reason

    yield refused[positions], "invalid_scheduler", describe


def sampler_names(batch: RowBatch) -> set[str]:
    """The names in the rows' own `scheduler` that are read as a class of another name."""
    column = batch.fields.get("scheduler")
    names = [] if column is None else column.unique().to_pylist()
    return {name for name in names if name and reading(name)}


def _begins_late(batch: RowBatch, route: ResolvedRoute, steps: npt.NDArray[np.int64]) -> RowMask:
    """Whether the first steps of each row are left out, as diffusers counts them."""
    late = np.zeros(batch.num_rows, dtype=bool)
    for name in ("strength", "denoising_start"):
        values = effective_values(batch, route, name) if name in route.defaults else None
        if values is not None and name == "strength":
            # A strength outside 0 to 1 is clipped here, because another rule refuses it.
            late |= np.floor(steps * np.clip(np.nan_to_num(values, nan=1), 0, 1)) < steps
        elif values is not None:
            late |= np.nan_to_num(values) > 0
    return late


def published_scheduler(card: ModelCard, system: System) -> Published:
    """The checkpoint's own scheduler, with which the schedulers of rows are compared."""
    settings = tuple(sorted(card.scheduler_settings.items()))
    return Published(name=card.scheduler, settings=settings, only=system.schedulers)
