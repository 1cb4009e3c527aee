"""Every rule that a row's parameters must keep, for whole batches at once.

The plan runs these before anything is paid for; a worker runs the same ones over the rows of its shard,
so that a row is refused in both places for the same reason or in neither.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.inputs.input_file import RowBatch
from actors.rows.routing import AnyRoute, ResolvedRoute, Router, Unroutable
from actors.rows.row_values import Finding, always, effective
from actors.rows.scheduler_checks import refused_schedulers
from schemas.errors import RowError
from schemas.systems.model_card import ModelCard
from schemas.systems.parameters import PARAMETERS, Bounds
from schemas.systems.schedulers import shown
from schemas.wording.nearest import did_you_mean

_SHOWN_NUMBERS = 4
"""Of a list that should be of two."""
MAX_IMAGES_PER_ROW = 64
MAX_SEED = 2**63 - 1024
"""The greatest number below 2**63 that a float column can hold. Image j uses seed + j, and all of them
must fit torch's signed 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedBatch:
    """A batch with each row's route and problem."""

    batch: RowBatch
    positions: npt.NDArray[np.intp]
    """For each row the position of its route in `routes`."""
    routes: list[AnyRoute]
    problems: dict[int, RowError]
    """By position in the batch; the first rule that a row breaks."""


def check_batch(batch: RowBatch, router: Router, models: Mapping[str, ModelCard]) -> CheckedBatch:
    """Route a batch and hold every row against the rules of its pipeline."""
    fields = batch.fields
    positions, routes = router.resolve_batch(fields.get("task"), fields.get("model"), batch.num_rows)
    problems: dict[int, RowError] = {}
    for index, route in enumerate(routes):
        on_route = positions == index
        if isinstance(route, Unroutable):
            problems |= dict.fromkeys(np.flatnonzero(on_route).tolist(), route.problem)
            continue
        for bad, code, describe in _findings(batch, route, models[route.model], router.max_pixels):
            for row in np.flatnonzero(bad & on_route).tolist():
                problems.setdefault(row, RowError(code, describe(row)))
    problems |= batch.problems
    return CheckedBatch(batch=batch, positions=positions, routes=routes, problems=problems)


def _findings(batch: RowBatch, route: ResolvedRoute, card: ModelCard, max_pixels: int) -> Iterator[Finding]:
    yield from _missing(batch, route)
    yield from _seeds_and_counts(batch)
    for name in route.defaults:
        if name in batch.fields:
            yield from _out_of_bounds(batch.fields[name], name)
    for side in ("height", "width"):
        if side in route.defaults:
            yield from _indivisible(batch, route, side, card)
    yield from _too_many_pixels(batch, route, max_pixels)
    if "strength" in route.defaults:
        yield from _no_step(batch, route)
    if "denoising_start" in route.defaults:
        yield from _no_share(batch, route)
    for name, most in own_limits(card).items():
        if name in route.defaults:
            yield from _beyond(batch, route, name, most)
    if "scheduler" in route.defaults:
        yield from refused_schedulers(batch, route, card)


def _missing(batch: RowBatch, route: ResolvedRoute) -> Iterator[Finding]:
    nobody = np.zeros(batch.num_rows, dtype=bool)
    if "prompt" in route.system.texts and "prompt" in batch.fields:
        no_prompt = batch.fields["prompt"].is_null().to_numpy(zero_copy_only=False)
        yield no_prompt, "missing_prompt", always("prompt is null; give a text (an empty one is allowed)")
    for field, who in route.needed_images().items():
        if field in batch.present:
            absent, said = ~batch.present[field], "and the row has none"
        else:
            absent, said = ~nobody, f"and no column holds it; name one with input.columns: {{{field}: ...}}"
        yield absent, f"missing_{field}", always(f"{who} needs `{field}`, {said}")


def _seeds_and_counts(batch: RowBatch) -> Iterator[Finding]:
    for field, low, high in (("seed", 0, MAX_SEED), ("num_images_per_prompt", 1, MAX_IMAGES_PER_ROW)):
        if field in batch.fields:
            yield from _outside(batch.fields[field], field, low, high, whole=True)


def _out_of_bounds(values: pa.Array, name: str) -> Iterator[Finding]:
    bounds = PARAMETERS[name]
    if bounds.kind == "pair of whole numbers":
        yield from _no_pair(values, name, bounds)
    elif bounds.choices:
        yield from _no_choice(values, name, bounds.choices)
    elif bounds.kind not in ("text", "options"):
        whole = bounds.kind == "whole number"
        yield from _outside(values, name, bounds.minimum, bounds.maximum, whole=whole)


def _outside(values: pa.Array, name: str, low: float, high: float, *, whole: bool) -> Iterator[Finding]:
    given = values.is_valid().to_numpy(zero_copy_only=False)
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        fits = (numbers >= low) & (numbers <= high)
        if whole and numbers.dtype.kind == "f":
            fits &= numbers == np.floor(numbers)
    kind = f"a whole number from {low:.0f} to {int(high)}" if whole else f"a number from {low:g} to {high:g}"
    allowed = f"it must be {kind}"
    yield given & ~fits, "invalid_parameter", lambda row: f"{name} is {numbers[row]}; {allowed}"


def _no_pair(values: pa.Array, name: str, bounds: Bounds) -> Iterator[Finding]:
    def is_wrong(pair: list[int | None]) -> bool:
        return not all(number is not None and bounds.minimum <= number <= bounds.maximum for number in pair)

    def describe(row: int) -> str:
        # One list may hold millions.
        numbers = values.slice(row, 1).flatten().slice(0, _SHOWN_NUMBERS + 1).to_pylist()
        rest = f" ... ({lengths[row]:,} in all)" if len(numbers) > _SHOWN_NUMBERS else ""
        return f"{name} is {numbers[:_SHOWN_NUMBERS]}{rest}; it must be {wanted}"

    lengths = pc.list_value_length(values).fill_null(2).to_numpy(zero_copy_only=False)
    given = values.is_valid().to_numpy(zero_copy_only=False)
    bad = lengths != 2
    pairs = np.flatnonzero(given & ~bad)
    bad[pairs] = [is_wrong(pair) for pair in values.take(pairs).to_pylist()]
    wanted = f"two whole numbers from {bounds.minimum:.0f} to {bounds.maximum:.0f}"
    yield bad, "invalid_parameter", describe


def _no_choice(values: pa.Array, name: str, choices: tuple[str, ...]) -> Iterator[Finding]:
    given = values.is_valid().to_numpy(zero_copy_only=False)
    known = pc.is_in(values, pa.array(choices)).to_numpy(zero_copy_only=False)

    def describe(row: int) -> str:
        value = values[row].as_py()
        return (
            f"{name} is {shown(value)}{did_you_mean(value, choices)}; it must be one of {', '.join(choices)}"
        )

    yield given & ~known, "invalid_parameter", describe


def _indivisible(batch: RowBatch, route: ResolvedRoute, side: str, card: ModelCard) -> Iterator[Finding]:
    pixels = effective(batch, route, side)
    if pixels is None:
        return
    later = [
        (step.system.image_multiple, f", which step {place} ({step.system.task}) takes")
        for place, step in enumerate(route.then, 2)
    ]
    # All are powers of two, so the greatest is a multiple of the others.
    factor, whose = max([(card.size_factor, ""), *later], key=lambda each: each[0])

    def describe(row: int) -> str:
        near = max(factor, round(pixels[row] / factor) * factor)
        return f"{side} is {pixels[row]:g}, not a multiple of {factor}{whose}; {near} would do"

    yield np.nan_to_num(pixels) % factor != 0, "invalid_size", describe


def _too_many_pixels(batch: RowBatch, route: ResolvedRoute, most: int) -> Iterator[Finding]:
    """Each row may be within its own bounds and still be a day's work, or all of a device's memory."""
    height, width = effective(batch, route, "height"), effective(batch, route, "width")
    if height is None or width is None:  # The picture decides, and a worker looks at its header.
        return
    growth = route.growth()
    with np.errstate(over="ignore"):  # What is no number is another rule's to refuse.
        pixels = np.nan_to_num(height) * np.nan_to_num(width) * growth**2

    def describe(row: int) -> str:
        grown = f", for a later step {growth} times as wide" if growth > 1 else ""
        size = f"height {height[row]:g}, width {width[row]:g}{grown}"
        return f"{size}: that is more than the {most:,} pixels of input.max_pixels"

    yield pixels > most, "invalid_size", describe


def own_limits(card: ModelCard) -> dict[str, int]:
    """By parameter the greatest value that this checkpoint takes, where not all take the same."""
    return {"noise_level": card.max_noise_level, "clip_skip": card.max_clip_skip}


def _beyond(batch: RowBatch, route: ResolvedRoute, name: str, most: int) -> Iterator[Finding]:
    """A route's value is looked at too: the row may have chosen another model than the route's."""
    values = effective(batch, route, name)
    if values is not None:
        bad = np.nan_to_num(values) > most
        yield bad, "invalid_parameter", lambda row: _too_much(name, values[row], route.model, most)


def _too_much(name: str, value: float, model: str, most: int) -> str:
    return f"{name} is {value:g}; model `{model}` takes {most} at most"


def _no_step(batch: RowBatch, route: ResolvedRoute) -> Iterator[Finding]:
    """diffusers 0.42.1 then runs no step at all and hands the input back without a word."""
    strength = effective(batch, route, "strength")
    steps = effective(batch, route, "num_inference_steps")
    if strength is None or steps is None:
        return
    with np.errstate(invalid="ignore", over="ignore"):
        run = np.minimum(np.floor(np.nan_to_num(strength * steps)), steps)
    start = effective(batch, route, "denoising_start") if "denoising_start" in route.defaults else None
    counts = True if start is None else np.isnan(start)  # XL's pipelines ask for the one or the other.

    def describe(row: int) -> str:
        return (
            f"strength {strength[row]:g} of {steps[row]:g} steps runs no step at all; "
            "raise strength or num_inference_steps"
        )

    yield counts & (run < 1), "invalid_parameter", describe


def _no_share(batch: RowBatch, route: ResolvedRoute) -> Iterator[Finding]:
    start, end = effective(batch, route, "denoising_start"), effective(batch, route, "denoising_end")
    if start is None or end is None:
        return

    def describe(row: int) -> str:
        return f"denoising_start is {start[row]:g}; it must be below denoising_end, {end[row]:g}"

    yield start >= end, "invalid_parameter", describe
