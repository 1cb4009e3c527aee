"""Whether rows that are guided by ControlNets have all that these need."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.inputs.input_file import RowBatch
from actors.inputs.values import is_present
from actors.rows.routing import ResolvedRoute
from actors.rows.row_values import RowMask, Violation, always, coded_values, effective_values
from schemas.systems.adapter_weights import unknown_adapter
from schemas.systems.control_parameters import CONTROL_IMAGES, controls_of, parse_controls
from schemas.systems.schedulers import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a row's `controls` and `controlnet` ask for together."""

    entries: Sequence[dict[str, Any]] = ()
    """The ControlNets that guide the row; empty if they cannot be read."""
    invalid: str = ""
    """What is wrong with the two fields; empty if nothing is."""
    of_route: bool = False
    """Whether they are the route's."""


def refused_controls(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    """The violations that rows commit whose ControlNets cannot guide them."""
    codes, asked = _asked(batch, route)

    def by_code(of_each: list[bool]) -> RowMask:
        return np.array(of_each, dtype=bool)[codes]

    invalid = [each.invalid for each in asked]
    yield by_code([*map(bool, invalid)]), "invalid_parameter", lambda row: invalid[codes[row]]
    unknown = [_unknown(each, route) for each in asked]
    yield by_code([*map(bool, unknown)]), "unknown_controlnet", lambda row: unknown[codes[row]]
    yield from _unfit_for_unions(batch, route, codes, asked)
    yield from _modes_of_no_union(batch, route, codes, asked)

    def name_of(row: int, position: int) -> str:
        return f"the ControlNet `{asked[codes[row]].entries[position]['controlnet']}`"

    yield from _without_image(batch, np.array([len(each.entries) for each in asked])[codes], name_of)
    for code, each in enumerate(asked):
        for entry in each.entries:
            yield from _empty_ranges(batch, route, entry, codes == code)
    if "padding_mask_crop" in route.defaults:
        several = by_code([_several(each, route) for each in asked])
        yield from _cropped(batch, route, several)
    guided = by_code([bool(each.entries) for each in asked])
    for name in route.system.lost_with_control:
        yield from _lost(batch, route, name, guided)


def refused_later_controls(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    """The violations of rows that ControlNets cannot guide in a later step of their chain.

    Rows change nothing of these steps but the images, so each step is judged once.
    """
    for number, step in enumerate(route.then, 2):
        controls = controls_of(step.defaults)
        if not controls:
            continue
        names = [
            f"the ControlNet `{each.controlnet}` of step {number} ({step.system.task})" for each in controls
        ]
        num_controls = np.full(batch.num_rows, len(controls))
        yield from _without_image(batch, num_controls, partial(_name_at, names))
        row = RowBatch(
            first_row=0,
            num_rows=1,
            fields={},
            present={CONTROL_IMAGES[0]: np.ones(1, dtype=bool)},
            uris={},
            keep={},
            problems={},
        )
        for refused, code, describe in refused_controls(row, step):
            if refused[0]:
                message = f"step {number} ({step.system.task}): {describe(0)}"
                yield np.ones(batch.num_rows, dtype=bool), code, always(message)


def rows_with_controls(batch: RowBatch, route: ResolvedRoute, selected: RowMask) -> Counter[tuple[str, str]]:
    """The number of selected rows that each ControlNet guides, by model and ControlNet, in any step.

    The rows are those of the route, and none of them breaks a rule.
    """
    of_steps = {(step.model, each.controlnet) for step in route.then for each in controls_of(step.defaults)}
    counts: Counter[tuple[str, str]] = Counter()
    if not route.controlnets and not of_steps:
        return counts
    codes, asked = _asked(batch, route)
    takes_controls = "controlnet" in route.defaults
    for each, num_rows in zip(
        asked, np.bincount(codes[selected], minlength=len(asked)).tolist(), strict=True
    ):
        own = {(route.model, entry["controlnet"]) for entry in each.entries} if takes_controls else set()
        counts.update(dict.fromkeys(own | of_steps, num_rows))
    return +counts


def _asked(batch: RowBatch, route: ResolvedRoute) -> tuple[npt.NDArray[np.intp], list[_Asked]]:
    """What each row asks for, as (codes, list): each code is a position in the list."""
    texts, names = (coded_values(batch, route, field) for field in ("controls", "controlnet"))
    pairs, codes = np.unique(texts.codes * len(names.values) + names.codes, return_inverse=True)
    asked = []
    for text, name in (divmod(pair, len(names.values)) for pair in pairs.tolist()):
        own_text, own_name = text < len(texts.values) - 1, name < len(names.values) - 1
        # A row's own value replaces both of the route's.
        text_read = texts.values[text] if own_text or not own_name else None
        name_read = names.values[name] if own_name or not own_text else None
        asked.append(_read(text_read, name_read, of_route=not own_text and not own_name))
    return codes, asked


def _read(text: str | None, name: str | None, *, of_route: bool) -> _Asked:
    try:
        entries = parse_controls(text or "[]")
    except ValueError as error:
        return _Asked(invalid=f"controls is {shown(text or '')}: {error}")
    if name and entries and [entry["controlnet"] for entry in entries] != [name]:
        return _Asked(invalid="the row has both `controlnet` and `controls`; name all in `controls`")
    return _Asked(entries=entries or ([{"controlnet": name}] if name else []), of_route=of_route)


def _unknown(asked: _Asked, route: ResolvedRoute) -> str:
    """What is wrong with the first name that is not one of the model's ControlNets; empty if all are."""
    problems = (
        unknown_adapter("ControlNet", entry["controlnet"], route.model, route.controlnets)
        for entry in asked.entries
    )
    problem = next(filter(None, problems), "")
    if not problem:
        return ""
    origin = ". They come from the route; set controlnet to an empty text for none" if asked.of_route else ""
    return f"{problem}. ControlNets are named in models.{route.model}.controlnets{origin}"


def _unfit_for_unions(
    batch: RowBatch, route: ResolvedRoute, codes: npt.NDArray[np.intp], asked: Sequence[_Asked]
) -> Iterator[Violation]:
    """Rows with a union of ControlNets, and with what diffusers 0.42.1 has for no union."""
    modes, guesses = (effective_values(batch, route, name) for name in ("control_mode", "guess_mode"))
    nan = np.full(batch.num_rows, np.nan)
    for code, each in enumerate(asked):
        names = [entry["controlnet"] for entry in each.entries]
        union = next((name for name in names if _num_modes(name, route)), None)
        if union is None:
            continue
        rows = codes == code
        mixed = np.full(batch.num_rows, {*names} != {union})
        message = f"ControlNet `{union}` is a union, which guides without any other; name it alone"
        yield rows & mixed, "invalid_parameter", always(message)
        message = f"diffusers has no guess_mode for a union such as `{union}`; leave it out for this row"
        yield (
            rows & (np.nan_to_num(nan if guesses is None else guesses) > 0),
            "invalid_parameter",
            always(message),
        )
        most = _num_modes(union, route) - 1
        message = f"ControlNet `{union}` is a union: control_mode must be a number from 0 to {most}"
        for entry in each.entries:
            given = nan if modes is None else modes
            mode = np.full(batch.num_rows, entry["control_mode"]) if "control_mode" in entry else given
            # What is not set is NaN, which is not at most anything.
            yield rows & ~(mode <= most), "invalid_parameter", always(message)


def _modes_of_no_union(
    batch: RowBatch, route: ResolvedRoute, codes: npt.NDArray[np.intp], asked: Sequence[_Asked]
) -> Iterator[Violation]:
    """Rows that say what their control image shows, although their ControlNet is not a union.

    A route's `control_mode` counts only beside its own ControlNets: rows cannot take it back.
    """
    own = batch.fields.get("control_mode")
    is_set = np.zeros(batch.num_rows, dtype=bool) if own is None else is_present(own)
    for code, each in enumerate(asked):
        names = [entry["controlnet"] for entry in each.entries]
        if not names or any(_num_modes(name, route) for name in names):
            continue
        in_entries = any("control_mode" in entry for entry in each.entries)
        of_route = each.of_route and route.defaults.get("control_mode") is not None
        message = f"ControlNet `{names[0]}` is not a union, and only those have a control_mode; leave it out"
        rows = codes == code
        yield rows if in_entries or of_route else rows & is_set, "invalid_parameter", always(message)


def _num_modes(name: str, route: ResolvedRoute) -> int:
    return route.controlnets[name].num_modes if name in route.controlnets else 0


def _name_at(names: Sequence[str], _: int, position: int) -> str:
    return names[position]


def _without_image(
    batch: RowBatch, num_controls: npt.NDArray[np.intp], name_of: Callable[[int, int], str]
) -> Iterator[Violation]:
    """Rows that lack an image for one of their ControlNets; `name_of` (row, position) names it.

    Each follows the image of its position, or `control_image` if the row has none there.
    """
    nowhere = np.zeros(batch.num_rows, dtype=bool)
    first = batch.present.get(CONTROL_IMAGES[0], nowhere)
    for number, field in enumerate(CONTROL_IMAGES, 1):
        absent = (num_controls >= number) & ~first & ~batch.present.get(field, nowhere)
        reason = "and the row has none"
        if CONTROL_IMAGES[0] not in batch.present:
            reason = "and no column has it; name one with input.columns: {control_image: ...}"

        def describe(row: int, position: int = number - 1, field: str = field, reason: str = reason) -> str:
            return f"{name_of(row, position)} needs `{field}`, {reason}"

        yield absent, "missing_control_image", describe


def _empty_ranges(
    batch: RowBatch, route: ResolvedRoute, entry: dict[str, Any], guided: RowMask
) -> Iterator[Violation]:
    """Rows whose ControlNet guides no step; what the entry leaves out is as in the row."""
    fields = ("control_guidance_start", "control_guidance_end")
    start, end = (
        np.full(batch.num_rows, entry[field]) if field in entry else effective_values(batch, route, field)
        for field in fields
    )
    if start is None or end is None:
        return

    def describe(row: int) -> str:
        return f"{fields[0]} is {start[row]:g}; it must be below {fields[1]}, {end[row]:g}"

    yield guided & (start >= end), "invalid_parameter", describe


def _several(asked: _Asked, route: ResolvedRoute) -> bool:
    """Whether diffusers is given a list of control images."""
    return len(asked.entries) > 1 or any(_num_modes(entry["controlnet"], route) for entry in asked.entries)


def _cropped(batch: RowBatch, route: ResolvedRoute, several: RowMask) -> Iterator[Violation]:
    """Rows that crop although they have several ControlNets or a union, which diffusers 0.42.1 refuses."""
    crops = effective_values(batch, route, "padding_mask_crop")
    if crops is not None:
        message = "diffusers has no padding_mask_crop for several ControlNets or a union; leave it out"
        yield several & ~np.isnan(crops), "invalid_parameter", always(message)


def _lost(batch: RowBatch, route: ResolvedRoute, name: str, guided: RowMask) -> Iterator[Violation]:
    """Guided rows that set a parameter which the pipeline with ControlNets does not take."""
    published = route.system.defaults[name]
    values = batch.fields[name].to_pylist() if name in batch.fields else [None] * batch.num_rows
    effective = (route.defaults[name] if value is None else value for value in values)
    # Pairs are tuples in parameters, and lists here.
    is_set = [(tuple(value) if isinstance(value, list) else value) != published for value in effective]
    message = f"diffusers has no {name} for {route.system.task} with a ControlNet; leave it out for this row"
    yield guided & np.array(is_set, dtype=bool), "invalid_parameter", always(message)
