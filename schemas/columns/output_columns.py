"""The output's columns: one row per image, with Hugging Face's image type and its schema metadata."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from schemas.columns.input_columns import TEXT_FIELDS, ColumnMap, id_type, kept_type
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import ModelCard
from schemas.systems.parameters import PARAMETERS
from schemas.systems.system_table import PROMPTS, System, find_system

IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""Exactly this, in this order: datasets 5.2 takes any other type for raw bytes, without a word."""

STATUSES: tuple[str, ...] = ("ok", "filtered", "failed")
"""A row's outcomes: made, made but withheld by a safety checker, and not made."""

PART_COLUMNS: dict[str, tuple[pa.DataType, ...]] = {
    "row_id": (pa.string(), pa.int64()),
    "image_index": (pa.int64(),),
    "task": (pa.string(),),
    "model": (pa.string(),),
    "image": (IMAGE_TYPE,),
    "width": (pa.int64(),),
    "height": (pa.int64(),),
    "prompt": (pa.string(),),
    "nsfw": (pa.bool_(),),
    "status": (pa.string(),),
    "error_code": (pa.string(),),
    "error_message": (pa.string(),),
    "image_sha256": (pa.string(),),
}
"""What every part has, and of which types: what programs read of parts that anybody may have changed."""
PART_COLUMNS_IF_THERE: dict[str, tuple[pa.DataType, ...]] = {
    "depth": (IMAGE_TYPE,),
    "depth_sha256": (pa.string(),),
    "step_images": (pa.list_(IMAGE_TYPE),),
}
NEVER_NULL = ("row_id", "image_index", "status")

_ARROW_KINDS: dict[str, pa.DataType] = {
    "whole number": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
    "pair of whole numbers": pa.list_(pa.int64()),
    "options": pa.string(),
}


def output_schema(
    spec: JobSpec, models: dict[str, ModelCard], columns: ColumnMap, input_schema: pa.Schema
) -> pa.Schema:
    """The schema of every part of a job; SpecError where a kept column's name is already taken."""
    systems = _systems(spec, models)
    depth = any(system.gives_depth for system in systems)
    steps = any(route.keep_steps for route in spec.routes.values())
    texts = [name for name in TEXT_FIELDS if name in PROMPTS or any(name in each.texts for each in systems)]
    fields = [
        pa.field("row_id", _id_type(columns, input_schema), nullable=False),
        pa.field("image_index", pa.int64(), nullable=False),
        pa.field("task", pa.string()),
        pa.field("model", pa.string()),
        pa.field("image", IMAGE_TYPE),
        *([pa.field("depth", IMAGE_TYPE)] if depth else []),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        *(pa.field(name, pa.string()) for name in texts),
        *(pa.field(f"{name}_truncated", pa.string()) for name in texts),
        pa.field("seed", pa.int64()),
        *(pa.field(name, _ARROW_KINDS[PARAMETERS[name].kind]) for name in _used_parameters(systems)),
        pa.field("nsfw", pa.bool_()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("image_sha256", pa.string()),
        *([pa.field("depth_sha256", pa.string())] if depth else []),
        *([pa.field("step_images", pa.list_(IMAGE_TYPE))] if steps else []),
    ]
    written = {field.name for field in fields}
    # Also what this job does not write: parts of all jobs are read alike.
    taken = written | PART_COLUMNS_IF_THERE.keys()
    for name in columns.keep:
        if name in taken:
            raise SpecError(
                f"input.keep: `{name}` is a column that darkroom writes itself; rename it in the input, "
                "or leave it out"
            )
        fields.append(pa.field(name, kept_type(name, input_schema.field(name).type)))
    images = {"image", "depth"} & written | _image_columns(input_schema, columns.keep)
    return pa.schema(fields, metadata=_hugging_face(images, {"step_images"} & written))


def misfits(schema: pa.Schema) -> list[str]:
    """How a part's schema is not that of any job."""
    wanted = PART_COLUMNS | {
        name: PART_COLUMNS_IF_THERE[name] for name in PART_COLUMNS_IF_THERE if name in schema.names
    }
    return [problem for name, types in wanted.items() if (problem := _misfit(schema, name, types))]


def _misfit(schema: pa.Schema, name: str, types: Sequence[pa.DataType]) -> str:
    places = schema.get_all_field_indices(name)
    if len(places) != 1:
        return f"column `{name}` is there {len(places)} times" if places else f"column `{name}` is missing"
    found = schema.field(places[0]).type
    return "" if found in types else f"column `{name}` is {found}, not {' or '.join(map(str, types))}"


def _systems(spec: JobSpec, models: dict[str, ModelCard]) -> list[System]:
    """All that some row of this job can go through."""
    families = sorted({card.family for card in models.values()})
    found = (find_system(family, spec.task_of(route)) for family in families for route in spec.routes)
    return [system for system in found if system is not None]


def _used_parameters(systems: Sequence[System]) -> list[str]:
    """Parameters that some row can have; width and height are the image's own columns."""
    taken = {name for system in systems for name in system.defaults}
    return [name for name in PARAMETERS if name in taken and name not in ("height", "width")]


def _id_type(columns: ColumnMap, input_schema: pa.Schema) -> pa.DataType:
    column = columns.fields.get("row_id")
    return pa.string() if column is None else id_type(input_schema.field(column).type)


def _image_columns(input_schema: pa.Schema, keep: tuple[str, ...]) -> set[str]:
    return {name for name in keep if input_schema.field(name).type == IMAGE_TYPE}


def _hugging_face(images: set[str], lists: set[str]) -> dict[str, str]:
    # Naming the image columns is enough; a listed type that differs from Arrow's own is an error.
    image = {"_type": "Image"}
    features: dict[str, Any] = dict.fromkeys(sorted(images), image)
    features |= {name: {"_type": "List", "feature": image} for name in sorted(lists)}
    return {"huggingface": json.dumps({"info": {"features": features}})}
