"""Whether rows that are guided by ControlNets have all that these need."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from actors.inputs.input_file import RowBatch
from actors.rows.routing import ResolvedRoute
from actors.rows.row_values import RowMask, Violation, always, coded_values, effective_values
from schemas.systems.adapter_weights import unknown_adapter
from schemas.systems.control_parameters import controls_of


def refused_controls(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    """The violations that rows commit whose ControlNets cannot guide them."""
    names = coded_values(batch, route, "controlnet")
    unknown = [_unknown(name, route) for name in names.values]

    def describe(row: int) -> str:
        problem: str = unknown[names.codes[row]]
        if names.is_own(row):
            return problem
        return f"{problem}. The ControlNet comes from the route; set controlnet to an empty text for none"

    yield np.array([*map(bool, unknown)], dtype=bool)[names.codes], "unknown_controlnet", describe
    guided = np.array([bool(name) for name in names.values], dtype=bool)[names.codes]
    yield from _without_image(batch, route, guided)
    yield from _empty_ranges(batch, route, guided)
    for name in route.system.lost_with_control:
        yield from _lost(batch, route, name, guided)


def rows_with_controls(batch: RowBatch, route: ResolvedRoute, selected: RowMask) -> Counter[tuple[str, str]]:
    """The number of selected rows that each ControlNet guides, by model and ControlNet, in any step.

    The rows are those of the route, and none of them breaks a rule.
    """
    of_steps = {(step.model, each.controlnet) for step in route.then for each in controls_of(step.defaults)}
    counts: Counter[tuple[str, str]] = Counter()
    if not route.controlnets and not of_steps:
        return counts
    names = coded_values(batch, route, "controlnet")
    takes_controls = "controlnet" in route.defaults
    for name, num_rows in zip(
        names.values, np.bincount(names.codes[selected], minlength=len(names.values)).tolist(), strict=True
    ):
        own = {(route.model, name)} if takes_controls and name and num_rows else set()
        counts.update(dict.fromkeys(own | of_steps, num_rows))
    return +counts


def _unknown(name: str | None, route: ResolvedRoute) -> str:
    """What is wrong with the name of a ControlNet; empty for none and for one of the row's model."""
    problem = name and unknown_adapter("ControlNet", name, route.model, route.controlnets)
    return f"{problem}. ControlNets are named in models.{route.model}.controlnets" if problem else ""


def _without_image(batch: RowBatch, route: ResolvedRoute, guided: RowMask) -> Iterator[Violation]:
    later = any(controls_of(step.defaults) for step in route.then)
    if "control_image" in batch.present:
        absent, reason = ~batch.present["control_image"], "and the row has none"
    else:
        absent = np.ones(batch.num_rows, dtype=bool)
        reason = "and no column has it; name one with input.columns: {control_image: ...}"
    message = f"the ControlNet needs `control_image`, {reason}"
    yield absent & (guided | later), "missing_control_image", always(message)


def _empty_ranges(batch: RowBatch, route: ResolvedRoute, guided: RowMask) -> Iterator[Violation]:
    start = effective_values(batch, route, "control_guidance_start")
    end = effective_values(batch, route, "control_guidance_end")
    if start is None or end is None:
        return

    def describe(row: int) -> str:
        return (
            f"control_guidance_start is {start[row]:g}; it must be below control_guidance_end, {end[row]:g}"
        )

    yield guided & (start >= end), "invalid_parameter", describe


def _lost(batch: RowBatch, route: ResolvedRoute, name: str, guided: RowMask) -> Iterator[Violation]:
    """Guided rows that set a parameter which the pipeline with ControlNets does not take."""
    published = route.system.defaults[name]
    own = np.zeros(batch.num_rows, dtype=bool)
    if name in batch.fields:
        values = batch.fields[name]
        own = np.array([value not in (None, published) for value in _plain(values.to_pylist())], dtype=bool)
    of_route = route.defaults.get(name) != published
    missing = ~batch.fields[name].is_valid().to_numpy(zero_copy_only=False) if name in batch.fields else True
    message = f"diffusers has no {name} for {route.system.task} with a ControlNet; leave it out for this row"
    yield guided & (own | (of_route & missing)), "invalid_parameter", always(message)


def _plain(values: list[object]) -> Iterator[object]:
    """The values as parameters have them: pairs as tuples."""
    return (tuple(value) if isinstance(value, list) else value for value in values)
