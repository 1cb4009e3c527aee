"""Whether rows with IP-Adapters have the pictures that these show, and IP-Adapters that the model has."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from actors.inputs.input_file import RowBatch
from actors.rows.routing import ResolvedRoute
from actors.rows.row_values import CodedValues, RowMask, Violation, always, coded_values, effective_values
from schemas.systems.adapter_weights import unknown_adapter
from schemas.systems.image_prompts import IMAGE_PROMPT, image_prompt_of

_MISSING = f"missing_{IMAGE_PROMPT}"


def refused_ip_adapters(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    """The violations that rows commit whose pictures no IP-Adapter can show."""
    names = coded_values(batch, route, "ip_adapter")
    problems = [_unknown(name, route) for name in names.values]

    def describe(row: int) -> str:
        origin = "" if names.is_own(row) else ". It comes from the route; set ip_adapter to an empty text"
        return f"{problems[names.codes[row]]}{origin}"

    yield np.array([*map(bool, problems)], dtype=bool)[names.codes], "unknown_ip_adapter", describe
    without = _applied(batch, route, names) & ~_present(batch)
    yield without, _MISSING, always(_needs_image(batch, "the IP-Adapter"))


def refused_later_ip_adapters(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    """The violations of rows without a picture for the IP-Adapter of a later step of their chain."""
    for number, step in enumerate(route.then, 2):
        if image_prompt_of(step.defaults):
            message = _needs_image(batch, f"step {number} ({step.system.task}): the IP-Adapter")
            yield ~_present(batch), _MISSING, always(message)


def rows_with_ip_adapters(
    batch: RowBatch, route: ResolvedRoute, selected: RowMask
) -> Counter[tuple[str, str]]:
    """The number of selected rows that have each IP-Adapter, by model and adapter, in any step.

    The rows are those of the route, and none of them breaks a rule.
    """
    counts: Counter[tuple[str, str]] = Counter()
    of_steps = {
        (step.model, each.ip_adapter) for step in route.then if (each := image_prompt_of(step.defaults))
    }
    if not route.ip_adapters and not of_steps:
        return counts
    names = coded_values(batch, route, "ip_adapter")
    applied = _applied(batch, route, names)
    for code, name in enumerate(names.values):
        rows = selected & (names.codes == code)
        counts.update(dict.fromkeys(of_steps, int(rows.sum())))
        if name and (route.model, name) not in of_steps:
            counts[route.model, name] += int((rows & applied).sum())
    return +counts


def num_idle_pictures(batch: RowBatch, route: ResolvedRoute, selected: RowMask) -> int:
    """The number of selected rows with a picture that no IP-Adapter shows, though the model has some."""
    if not route.ip_adapters or any(image_prompt_of(step.defaults) for step in route.then):
        return 0
    applied = _applied(batch, route, coded_values(batch, route, "ip_adapter"))
    return int((selected & _present(batch) & ~applied).sum())


def _unknown(name: str | None, route: ResolvedRoute) -> str:
    problem = unknown_adapter("IP-Adapter", name, route.model, route.ip_adapters) if name else ""
    return problem and f"{problem}. IP-Adapters are named in models.{route.model}.ip_adapters"


def _applied(batch: RowBatch, route: ResolvedRoute, names: CodedValues) -> RowMask:
    """Whether each row has an IP-Adapter with a scale above 0."""
    named = np.array([bool(name) for name in names.values], dtype=bool)[names.codes]
    scales = effective_values(batch, route, "ip_adapter_scale")
    return named if scales is None else named & (np.nan_to_num(scales) != 0)


def _present(batch: RowBatch) -> RowMask:
    return batch.present.get(IMAGE_PROMPT, np.zeros(batch.num_rows, dtype=bool))


def _needs_image(batch: RowBatch, who: str) -> str:
    reason = "and the row has none"
    if IMAGE_PROMPT not in batch.present:
        reason = f"and no column has it; name one with input.columns: {{{IMAGE_PROMPT}: ...}}"
    return f"{who} needs `{IMAGE_PROMPT}`, {reason}"
