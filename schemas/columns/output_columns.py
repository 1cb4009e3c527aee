"""The output's columns: one row per image, with Hugging Face's image type and schema metadata."""

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from schemas.columns.fields import TEXT_FIELDS
from schemas.columns.input_columns import ColumnMap
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.systems.control_parameters import CONTROL
from schemas.systems.image_prompts import IP_ADAPTER
from schemas.systems.model_card import ModelCard
from schemas.systems.parameters import PARAMETERS
from schemas.systems.system_table import PROMPTS, System, find_system

IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""The type of an image column. datasets 5.2 silently reads any other type or order of fields as raw bytes."""

STATUSES: tuple[str, ...] = ("ok", "filtered", "failed")
"""A row's outcomes: generated, flagged by a safety checker, and not generated."""

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
"""Columns that every part has and that darkroom reads again, with the types that each may have.

They are checked before they are read, because anybody may have changed the part.
"""
OPTIONAL_PART_COLUMNS: dict[str, tuple[pa.DataType, ...]] = {
    "depth": (IMAGE_TYPE,),
    "depth_sha256": (pa.string(),),
    "step_images": (pa.list_(IMAGE_TYPE),),
}
"""Further columns that darkroom reads again if the part has them."""
WEIGHTS_TYPE = pa.list_(
    pa.struct(
        [pa.field("name", pa.string()), pa.field("weight", pa.float64()), pa.field("sha256", pa.string())]
    )
)
"""The type of adapters that were applied, each with its weight and the hash of its file."""
EMBEDDINGS_TYPE = pa.list_(pa.struct([pa.field("name", pa.string()), pa.field("sha256", pa.string())]))
"""The type of the learned tokens in a row's texts, each with the hash of its file."""
CONTROLS_TYPE = pa.list_(
    pa.struct(
        [
            pa.field("controlnet", pa.string()),
            pa.field("controlnet_conditioning_scale", pa.float64()),
            pa.field("control_guidance_start", pa.float64()),
            pa.field("control_guidance_end", pa.float64()),
            pa.field("control_mode", pa.int64()),
            pa.field("sha256", pa.string()),
        ]
    )
)
"""The type of the ControlNets that guided an image, each with the hash of its weights."""
NEVER_NULL = ("row_id", "image_index", "status")

_ARROW_KINDS: dict[str, pa.DataType] = {
    "whole number": pa.int64(),
    "number": pa.float64(),
    "true or false": pa.bool_(),
    "text": pa.string(),
    "pair of whole numbers": pa.list_(pa.int64()),
    "options": pa.string(),
    "weights by name": WEIGHTS_TYPE,
    "controls": CONTROLS_TYPE,
}


def output_schema(spec: JobSpec, models: dict[str, ModelCard], columns: ColumnMap) -> pa.Schema:
    """The schema of every part of a job.

    Raises SpecError if a kept column has the name of a column that darkroom writes.
    """
    systems = _systems(spec, models)
    depth = any(system.gives_depth for system in systems)
    steps = any(route.keep_steps for route in spec.routes.values())
    learned = any(card.embeddings for card in models.values())
    parameters = _used_parameters(systems, models)
    texts = [
        name for name in TEXT_FIELDS if name in PROMPTS or any(name in system.texts for system in systems)
    ]
    fields = [
        pa.field("row_id", columns.id_type, nullable=False),
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
        *(pa.field(name, _ARROW_KINDS[PARAMETERS[name].kind]) for name in parameters),
        *([pa.field("ip_adapter_sha256", pa.string())] if "ip_adapter" in parameters else []),
        *([pa.field("embeddings", EMBEDDINGS_TYPE)] if learned else []),
        pa.field("nsfw", pa.bool_()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("image_sha256", pa.string()),
        *([pa.field("depth_sha256", pa.string())] if depth else []),
        *([pa.field("step_images", pa.list_(IMAGE_TYPE))] if steps else []),
    ]
    written = {field.name for field in fields}
    # Also the columns that this job does not write: parts of all jobs are read in the same way.
    taken = written | OPTIONAL_PART_COLUMNS.keys()
    for name, arrow_type in columns.keep.items():
        if name in taken:
            raise SpecError(
                f"input.keep: `{name}` is a column that darkroom writes itself; rename it in the input, "
                "or leave it out"
            )
        fields.append(pa.field(name, arrow_type))
    return pa.schema(fields, metadata=_hugging_face(fields))


def column_problems(schema: pa.Schema) -> list[str]:
    """What is wrong with a part's schema: one text for each column that does not fit."""
    expected = PART_COLUMNS | {
        name: OPTIONAL_PART_COLUMNS[name] for name in OPTIONAL_PART_COLUMNS if name in schema.names
    }
    return [problem for name, types in expected.items() if (problem := _column_problem(schema, name, types))]


def _column_problem(schema: pa.Schema, name: str, types: Sequence[pa.DataType]) -> str:
    indices = schema.get_all_field_indices(name)
    if len(indices) != 1:
        return f"there are {len(indices)} columns `{name}`" if indices else f"column `{name}` is missing"
    actual = schema.field(indices[0]).type
    return "" if actual in types else f"column `{name}` is {actual}, not {' or '.join(map(str, types))}"


def _systems(spec: JobSpec, models: dict[str, ModelCard]) -> list[System]:
    """Every system that some row of this job can use."""
    families = sorted({card.family for card in models.values()})
    systems = (find_system(family, spec.task_of(route)) for family in families for route in spec.routes)
    return [system for system in systems if system is not None]


def _used_parameters(systems: Sequence[System], models: Mapping[str, ModelCard]) -> list[str]:
    """The parameters that some row can have, without width and height, which are columns of the image."""
    taken = {name for system in systems for name in system.defaults} - {"height", "width"}
    if not any(card.loras for card in models.values()):
        taken.discard("loras")
    if not any(card.controlnets for card in models.values()):
        taken -= CONTROL.keys()
    if not any(card.ip_adapters for card in models.values()):
        taken -= IP_ADAPTER.keys()
    return [name for name in PARAMETERS if name in taken]


def _hugging_face(fields: Sequence[pa.Field]) -> dict[str, str]:
    # Naming the image columns is enough. A type listed here that differs from the Arrow type is an error.
    image = {"_type": "Image"}
    # datasets 4 and later call a list `List`, which datasets 3 does not know, and read this as the same.
    images = {"_type": "Sequence", "feature": image}
    features = {field.name: image for field in fields if field.type == IMAGE_TYPE}
    features |= {field.name: images for field in fields if field.type == pa.list_(IMAGE_TYPE)}
    return {"huggingface": json.dumps({"info": {"features": dict(sorted(features.items()))}})}
