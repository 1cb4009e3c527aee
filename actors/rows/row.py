"""Rows as the engine gets them: every value is final, and every image is still an encoded file or a URI."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from actors.images.input_images import MAX_IMAGE_FILE_BYTES, ImageSource
from actors.images.spool import Spool
from actors.inputs.input_file import RowBatch
from actors.rows.checks import MAX_SEED, CheckedBatch
from actors.rows.routing import AnyRoute, ResolvedRoute, Unroutable
from schemas.columns.fields import IMAGE_FIELDS, TEXT_FIELDS
from schemas.errors import RowError
from schemas.systems.adapter_weights import parse_weights, weights_text
from schemas.systems.control_parameters import (
    controls_text,
    parse_controls,
    settled_controls,
    with_own_controls,
)
from schemas.systems.image_prompts import settled_image_prompt
from schemas.systems.parameters import PARAMETERS, ParameterValue, with_preset
from schemas.systems.sampler_names import with_sampler
from schemas.systems.schedulers import options_text, parse_options


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One input row of a shard."""

    index: int
    """The row's position in the shard, from 0."""
    row_id: str | int
    route: AnyRoute
    texts: Mapping[str, str | None]
    """The texts by field: `prompt`, `negative_prompt` ..."""
    images: Mapping[str, ImageSource]
    """The images by field: `image`, `mask_image` ..."""
    seed: int
    num_images: int
    parameters: Mapping[str, ParameterValue | None]
    """The values of all parameters of the row's pipeline; None where the checkpoint decides."""
    keep: Mapping[str, pa.Array]
    """The row's kept columns: arrays of one value each, perhaps still in a dictionary."""
    problem: RowError | None
    """Why the row cannot be generated, where its values alone show it."""


def derived_seed(job_seed: int, row_id: str | int) -> int:
    """The seed of a row without one: 53 bits of a hash, a number that any tool can represent exactly."""
    digest = hashlib.sha256(f"{job_seed}:{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def derived_row_id(file_name: str, row: int) -> str:
    """The id of a row whose input has no `row_id`: the file's name and the row's number in it, from 0."""
    return f"{file_name}#{row}"


def build_rows(
    checked_batch: CheckedBatch,
    positions: Sequence[int],
    *,
    file_name: str,
    first_index: int,
    job_seed: int,
    spool: Spool,
) -> Iterator[Row]:
    """The rows at these positions of a checked batch.

    `first_index` is the position of the first of them in the shard. The images go into the `spool`.
    """
    batch = checked_batch.batch
    fields = {
        field: array.take(positions).to_pylist()
        for field, array in batch.fields.items()
        if field not in IMAGE_FIELDS
    }
    keep = {name: array.take(positions) for name, array in batch.keep.items()}
    for number, position in enumerate(positions):
        values = {field: column[number] for field, column in fields.items()}
        row_id = values.get("row_id")
        if row_id is None:
            row_id = derived_row_id(file_name, batch.first_row + position)
        route = checked_batch.routes[checked_batch.route_positions[position]]
        problem = checked_batch.problems.get(position)
        seed = values.get("seed")
        yield Row(
            index=first_index + number,
            row_id=row_id,
            route=route,
            texts={field: values.get(field) for field in TEXT_FIELDS},
            images=_images(batch, position, spool),
            seed=int(seed) if seed is not None and 0 <= seed <= MAX_SEED else derived_seed(job_seed, row_id),
            num_images=1 if problem else int(values.get("num_images_per_prompt") or 1),
            parameters={} if problem or isinstance(route, Unroutable) else _parameters(values, route),
            # These stay Arrow arrays: Python has no values for some types, such as nanoseconds.
            keep={name: column.slice(number, 1) for name, column in keep.items()},
            problem=problem,
        )


def _parameters(values: Mapping[str, Any], route: ResolvedRoute) -> dict[str, ParameterValue | None]:
    """The value of each parameter of the route's pipeline.

    It is the first one that exists of: the row's own, that of the row's preset, the route's, the published
    default. A sampler's name is resolved last: a row may have the name, and its route the options.
    """
    own = {
        name: _AS_KIND[PARAMETERS[name].kind](values[name])
        for name in route.defaults
        if values.get(name) is not None
    }
    name_wins = "scheduler" in own and "scheduler_options" not in own
    parameters = with_sampler(with_own_controls(route.defaults, with_preset(own)), name_wins=name_wins)
    return settled_image_prompt(settled_controls(parameters))


_AS_KIND: dict[str, Callable[[Any], ParameterValue]] = {
    "whole number": int,
    "number": float,
    "true or false": bool,
    "controls": lambda text: controls_text(parse_controls(text)),
    "text": str,
    "pair of whole numbers": lambda pair: (pair[0], pair[1]),
    "options": lambda text: options_text(parse_options(text)),
    "weights by name": lambda text: weights_text(parse_weights(text)),
}


def _images(batch: RowBatch, position: int, spool: Spool) -> dict[str, ImageSource]:
    images = {}
    for field in IMAGE_FIELDS:
        # One image is taken at a time: those of the batch are in memory already.
        struct = batch.fields[field][position] if field in batch.fields else None
        if struct is not None and struct.is_valid:
            images[field] = _source(field, struct["bytes"].as_buffer(), struct["path"].as_py(), spool)
    return images


def _source(field: str, data: pa.Buffer | None, uri: str | None, spool: Spool) -> ImageSource:
    if data is None:
        return ImageSource(data=None, uri=uri)
    if data.size > MAX_IMAGE_FILE_BYTES:
        message = f"`{field}` has {data.size:,} bytes; at most {MAX_IMAGE_FILE_BYTES:,} are read"
        return ImageSource(data=None, uri=None, problem=RowError("image_too_large", message))
    return ImageSource(data=spool.add(data.to_pybytes()), uri=uri)
