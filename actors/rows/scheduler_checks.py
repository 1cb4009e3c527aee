"""Whether each row's scheduler fits its model, its options and its steps."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from actors.inputs.input_file import RowBatch
from actors.rows.routing import ResolvedRoute
from actors.rows.row_values import Finding, Mask, coded, effective
from schemas.systems.model_card import ModelCard
from schemas.systems.parameters import PARAMETERS
from schemas.systems.scheduler_rules import Published, refusal
from schemas.systems.system_table import System


def refused_schedulers(batch: RowBatch, route: ResolvedRoute, card: ModelCard) -> Iterator[Finding]:
    """Each scheduler, with its options and its number of steps, is judged once however many rows have it."""
    names, texts = coded(batch, route, "scheduler"), coded(batch, route, "scheduler_options")
    given = effective(batch, route, "num_inference_steps")
    assert given is not None, "every pipeline has a published default"
    # What lies beyond is another rule's to refuse.
    most = int(PARAMETERS["num_inference_steps"].maximum)
    steps = np.clip(np.nan_to_num(given, nan=1), 1, most).astype(np.int64)
    late = _begins_late(batch, route, steps)
    shape = (len(names.values), len(texts.values), most + 1, 2)
    rows = np.ravel_multi_index((names.codes, texts.codes, steps, late.astype(np.int64)), shape)
    distinct, places = np.unique(rows, return_inverse=True)
    published = published_scheduler(card, route.system)
    said = [
        refusal(names.values[name] or "", texts.values[text], published, num_steps, bool(is_late))
        for name, text, num_steps, is_late in np.stack(np.unravel_index(distinct, shape), axis=1).tolist()
    ]
    refused = np.array([why is not None for why in said], dtype=bool)

    def describe(row: int) -> str:
        why = said[places[row]] or ""
        mixed = why.startswith("scheduler_options") and names.is_own(row) and not texts.is_own(row)
        return f"{why}. The options are the route's: a row without any says {{}}" if mixed else why

    yield refused[places], "invalid_scheduler", describe


def _begins_late(batch: RowBatch, route: ResolvedRoute, steps: npt.NDArray[np.int64]) -> Mask:
    """Whether the first of the steps are left out, as diffusers counts them."""
    late = np.zeros(batch.num_rows, dtype=bool)
    for name in ("strength", "denoising_start"):
        values = effective(batch, route, name) if name in route.defaults else None
        if values is not None and name == "strength":
            # What is no share is another rule's to refuse.
            late |= np.floor(steps * np.clip(np.nan_to_num(values, nan=1), 0, 1)) < steps
        elif values is not None:
            late |= np.nan_to_num(values) > 0
    return late


def published_scheduler(card: ModelCard, system: System) -> Published:
    """What a checkpoint's schedulers are measured against."""
    settings = tuple(sorted(card.scheduler_settings.items()))
    return Published(name=card.scheduler, settings=settings, only=system.schedulers)
