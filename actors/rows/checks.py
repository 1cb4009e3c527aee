"""All rules that a row's values must keep, checked for whole batches at once.

The plan checks them before anything is paid for. A worker checks the same rules for the rows of its shard, so
both fail a row for the same reason, or neither does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.images.image_uris import UriJudge
from actors.inputs.input_file import RowBatch
from actors.rows.adapters.adapter_kinds import refused_adapters
from actors.rows.routing import AnyRoute, ResolvedRoute, Router, SizeLimits, Unroutable
from actors.rows.row_values import RowMask, Violation, always, effective_values
from actors.rows.scheduler_checks import refused_schedulers
from actors.rows.step_sizes import Size, is_cropped, later_sizes
from schemas.errors import RowError
from schemas.systems.model_card import ModelCard
from schemas.systems.parameters import PARAMETERS, Bounds
from schemas.systems.schedulers import shown
from schemas.wording.amounts import counted
from schemas.wording.nearest import did_you_mean

_CHECKED_ELSEWHERE = ("text", "options", "weights by name", "true or false", "controls")
"""Kinds of parameters that have no bounds."""
_SHOWN_NUMBERS = 4
"""How many numbers a message shows of a list that should have two."""
MAX_IMAGES_PER_ROW = 64
MAX_SEED = 2**63 - 1024
"""The greatest number below 2**63 that a float column can have.

Image j of a row uses seed + j, and all of these must fit in torch's signed 64 bits.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedBatch:
    """A batch with each row's route and problem."""

    batch: RowBatch
    route_positions: npt.NDArray[np.intp]
    """For each row, the position of its route in `routes`."""
    routes: list[AnyRoute]
    problems: dict[int, RowError]
    """The problems of rows by position in the batch; of each row only the first rule that it breaks."""


def check_batch(
    batch: RowBatch, router: Router, models: Mapping[str, ModelCard], judge: UriJudge
) -> CheckedBatch:
    """The batch with each row's route, and the problem of each row that breaks a rule of its pipeline.

    `judge` knows which URIs the rows of the batch's file may read.
    """
    fields = batch.fields
    route_positions, routes = router.resolve_batch(fields.get("task"), fields.get("model"), batch.num_rows)
    problems: dict[int, RowError] = {}
    for position, route in enumerate(routes):
        on_route = route_positions == position
        if isinstance(route, Unroutable):
            problems |= dict.fromkeys(np.flatnonzero(on_route).tolist(), route.problem)
            continue
        for bad, code, describe in _violations(batch, route, models[route.model], router.limits):
            for row in np.flatnonzero(bad & on_route).tolist():
                problems.setdefault(row, RowError(code, describe(row)))
        for row, problem in _unreadable(batch, route, on_route, judge):
            problems.setdefault(row, problem)
    problems |= batch.problems
    return CheckedBatch(batch=batch, route_positions=route_positions, routes=routes, problems=problems)


def _violations(
    batch: RowBatch, route: ResolvedRoute, card: ModelCard, limits: SizeLimits
) -> Iterator[Violation]:
    yield from _missing(batch, route)
    yield from _seeds_and_counts(batch)
    for name in route.defaults:
        if name in batch.fields:
            yield from _out_of_bounds(batch.fields[name], name)
    for side in ("height", "width"):
        if side in route.defaults:
            yield from _indivisible(batch, route, side, card)
            yield from _too_long_for_file(batch, route, side, limits)
    yield from _too_many_pixels(batch, route, limits.max_pixels)
    if "strength" in route.defaults:
        yield from _no_steps(batch, route)
    if "denoising_start" in route.defaults:
        yield from _empty_range(batch, route)
    for name, most in checkpoint_limits(card).items():
        if name in route.defaults:
            yield from _above_limit(batch, route, name, most)
    if "scheduler" in route.defaults:
        yield from refused_schedulers(batch, route, card)
    yield from refused_adapters(batch, route)


def _missing(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    no_row = np.zeros(batch.num_rows, dtype=bool)
    if "prompt" in route.system.texts and "prompt" in batch.fields:
        no_prompt = batch.fields["prompt"].is_null().to_numpy(zero_copy_only=False)
        yield no_prompt, "missing_prompt", always("prompt is null; give a text (an empty one is allowed)")
    for field, who in route.needed_images().items():
        if field in batch.present:
            absent, reason = ~batch.present[field], "and the row has none"
        else:
            absent, reason = ~no_row, f"and no column has it; name one with input.columns: {{{field}: ...}}"
        yield absent, f"missing_{field}", always(f"{who} needs `{field}`, {reason}")


def _unreadable(
    batch: RowBatch, route: ResolvedRoute, on_route: RowMask, judge: UriJudge
) -> Iterator[tuple[int, RowError]]:
    """(row, problem) for each row of the route with an image whose URI it may not read."""
    for field in route.read_images():
        uris = batch.uris[field].to_pylist() if field in batch.uris else []
        for row in np.flatnonzero(on_route[: len(uris)]).tolist():
            if uris[row] is not None and (problem := judge.problem(uris[row])):
                yield row, problem


def _seeds_and_counts(batch: RowBatch) -> Iterator[Violation]:
    for field, low, high in (("seed", 0, MAX_SEED), ("num_images_per_prompt", 1, MAX_IMAGES_PER_ROW)):
        if field in batch.fields:
            yield from _outside_range(batch.fields[field], field, low, high, whole=True)


def _out_of_bounds(values: pa.Array, name: str) -> Iterator[Violation]:
    bounds = PARAMETERS[name]
    if bounds.kind == "pair of whole numbers":
        yield from _invalid_pair(values, name, bounds)
    elif bounds.choices:
        yield from _unknown_choice(values, name, bounds.choices)
    elif bounds.kind not in _CHECKED_ELSEWHERE:
        whole = bounds.kind == "whole number"
        yield from _outside_range(values, name, bounds.minimum, bounds.maximum, whole=whole)


def _outside_range(
    values: pa.Array, name: str, low: float, high: float, *, whole: bool
) -> Iterator[Violation]:
    given = values.is_valid().to_numpy(zero_copy_only=False)
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        fits = (numbers >= low) & (numbers <= high)
        if whole and numbers.dtype.kind == "f":
            fits &= numbers == np.floor(numbers)
    kind = f"a whole number from {low:.0f} to {int(high)}" if whole else f"a number from {low:g} to {high:g}"
    allowed = f"it must be {kind}"
    yield given & ~fits, "invalid_parameter", lambda row: f"{name} is {numbers[row]}; {allowed}"


def _invalid_pair(values: pa.Array, name: str, bounds: Bounds) -> Iterator[Violation]:
    def is_wrong(pair: list[int | None]) -> bool:
        return not all(number is not None and bounds.minimum <= number <= bounds.maximum for number in pair)

    def describe(row: int) -> str:
        # A list may have millions of numbers.
        numbers = values.slice(row, 1).flatten().slice(0, _SHOWN_NUMBERS + 1).to_pylist()
        rest = f" ... ({lengths[row]:,} in all)" if len(numbers) > _SHOWN_NUMBERS else ""
        return f"{name} is {numbers[:_SHOWN_NUMBERS]}{rest}; it must be {allowed}"

    lengths = pc.list_value_length(values).fill_null(2).to_numpy(zero_copy_only=False)
    given = values.is_valid().to_numpy(zero_copy_only=False)
    bad = lengths != 2
    pairs = np.flatnonzero(given & ~bad)
    bad[pairs] = [is_wrong(pair) for pair in values.take(pairs).to_pylist()]
    allowed = f"two whole numbers from {bounds.minimum:.0f} to {bounds.maximum:.0f}"
    yield bad, "invalid_parameter", describe


def _unknown_choice(values: pa.Array, name: str, choices: tuple[str, ...]) -> Iterator[Violation]:
    given = values.is_valid().to_numpy(zero_copy_only=False)
    known = pc.is_in(values, pa.array(choices)).to_numpy(zero_copy_only=False)

    def describe(row: int) -> str:
        value = values[row].as_py()
        return (
            f"{name} is {shown(value)}{did_you_mean(value, choices)}; it must be one of {', '.join(choices)}"
        )

    yield given & ~known, "invalid_parameter", describe


def _indivisible(batch: RowBatch, route: ResolvedRoute, side: str, card: ModelCard) -> Iterator[Violation]:
    pixels = effective_values(batch, route, side)
    if pixels is None:
        return
    # A step with a size of its own begins anew, unless it only repaints a crop.
    until = takewhile(
        lambda numbered: numbered[1].defaults.get(side) is None or is_cropped(numbered[1].defaults),
        enumerate(route.then, 2),
    )
    later = [
        (step.system.image_multiple, f", which step {number} ({step.system.task}) requires")
        for number, step in until
    ]
    # All are powers of two, so the greatest is a multiple of the others.
    factor, reason = max([(card.size_factor, ""), *later], key=lambda each: each[0])

    def describe(row: int) -> str:
        near = max(factor, round(pixels[row] / factor) * factor)
        return f"{side} is {pixels[row]:g}, not a multiple of {factor}{reason}; {near} would do"

    yield np.nan_to_num(pixels) % factor != 0, "invalid_size", describe


def _sizes(batch: RowBatch, route: ResolvedRoute) -> list[Size] | None:
    """The sizes at which the route's steps work, by row, and then that of the last result.

    NaN where the input image decides; None if it does so for all rows. A worker checks its header.
    """
    height, width = effective_values(batch, route, "height"), effective_values(batch, route, "width")
    if height is None or width is None or "height" not in route.defaults:
        return None
    height, width = height.copy(), width.copy()
    crops = effective_values(batch, route, "padding_mask_crop")
    grown = np.full(batch.num_rows, route.system.scale, dtype=np.float64)
    if crops is not None and "padding_mask_crop" in route.defaults:
        grown[~np.isnan(crops)] = np.nan  # The image keeps its size.
    with np.errstate(over="ignore"):  # Another rule refuses what is not finite.
        return [(height, width), *later_sizes(route, (height * grown, width * grown))]


def _too_many_pixels(batch: RowBatch, route: ResolvedRoute, most: int) -> Iterator[Violation]:
    """Rows whose image has too many pixels, though its height and its width are each within bounds.

    Such a row could take a day, or all of a device's memory.
    """
    sizes = _sizes(batch, route)
    if sizes is None:
        return
    for number, (step, (height, width)) in enumerate(zip(route.steps, sizes[:-1], strict=True), 1):
        with np.errstate(over="ignore"):
            pixels = np.broadcast_to(height * width, batch.num_rows)

        def describe(
            row: int, step: ResolvedRoute = step, size: Size = (height, width), number: int = number
        ) -> str:
            high, wide = (np.broadcast_to(side, batch.num_rows)[row] for side in size)
            who = "" if number == 1 else f"step {number} ({step.system.task}) works on "
            return (
                f"{who}height {high:g}, width {wide:g}: that is more than the {most:,} pixels of "
                "input.max_pixels"
            )

        yield pixels > most, "invalid_size", describe


def _too_long_for_file(
    batch: RowBatch, route: ResolvedRoute, side: str, limits: SizeLimits
) -> Iterator[Violation]:
    """Rows whose image the files of the output's format cannot hold."""
    sizes = _sizes(batch, route)
    if sizes is None:
        return
    own, result = (np.broadcast_to(size[side == "width"], batch.num_rows) for size in (sizes[0], sizes[-1]))

    def describe(row: int) -> str:
        whose = "" if result[row] == own[row] else " of the last step's result"
        return f"{side}{whose} is {result[row]:g}: {limits.too_long}"

    yield result > limits.max_side, "invalid_size", describe


def checkpoint_limits(card: ModelCard) -> dict[str, int]:
    """The greatest values that this checkpoint takes, by parameter, where checkpoints differ."""
    return {"noise_level": card.max_noise_level, "clip_skip": card.max_clip_skip}


def _above_limit(batch: RowBatch, route: ResolvedRoute, name: str, most: int) -> Iterator[Violation]:
    """Rows with a value that is too large for their model.

    The route's value is checked too: the row may name another model than the route.
    """
    values = effective_values(batch, route, name)
    if values is not None:
        bad = np.nan_to_num(values) > most
        yield bad, "invalid_parameter", lambda row: _too_much(name, values[row], route.model, most)


def _too_much(name: str, value: float, model: str, most: int) -> str:
    return f"{name} is {value:g}; model `{model}` takes at most {most}"


def _no_steps(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    """Rows whose strength leaves no step to run. diffusers 0.42.1 would silently return their input."""
    strength = effective_values(batch, route, "strength")
    steps = effective_values(batch, route, "num_inference_steps")
    if strength is None or steps is None:
        return
    with np.errstate(invalid="ignore", over="ignore"):
        run = np.minimum(np.floor(np.nan_to_num(strength * steps)), steps)
    start = effective_values(batch, route, "denoising_start") if "denoising_start" in route.defaults else None
    # XL's pipelines use denoising_start if there is one, and strength otherwise.
    strength_is_used = True if start is None else np.isnan(start)

    def describe(row: int) -> str:
        return (
            f"strength {strength[row]:g} of {counted(float(steps[row]), 'step')} runs no step at all; "
            "raise strength or num_inference_steps"
        )

    yield strength_is_used & (run < 1), "invalid_parameter", describe


def _empty_range(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    start = effective_values(batch, route, "denoising_start")
    end = effective_values(batch, route, "denoising_end")
    if start is None or end is None:
        return

    def describe(row: int) -> str:
        return f"denoising_start is {start[row]:g}; it must be below denoising_end, {end[row]:g}"

    yield start >= end, "invalid_parameter", describe
