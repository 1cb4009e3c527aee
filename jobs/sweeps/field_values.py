"""The fields that a sweep may set, the values that they may have, and the types of their columns."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator

from actors.rows.checks import MAX_IMAGES_PER_ROW, MAX_SEED
from schemas.columns.fields import FIELD_KINDS
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.systems.parameters import Parameters
from schemas.systems.sampler_names import unknown_scheduler


class FieldValues(Parameters):
    """The values of a row, each checked as far as it can be without the job's models and routes."""

    task: str | None = None
    model: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    image: str | None = None
    mask_image: str | None = None
    depth_map: str | None = None
    control_image: str | None = None
    control_image_2: str | None = None
    control_image_3: str | None = None
    control_image_4: str | None = None
    ip_adapter_image: str | None = None
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    num_images_per_prompt: int | None = Field(default=None, ge=1, le=MAX_IMAGES_PER_ROW)

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, scheduler: str | None) -> str | None:
        if problem := scheduler and unknown_scheduler(scheduler):
            raise ValueError(problem)
        return scheduler


_COLUMN_TYPES: Mapping[str, pa.DataType] = {
    "whole number": pa.int64(),
    "number": pa.float64(),
    "true or false": pa.bool_(),
    "pair of whole numbers": pa.list_(pa.int64()),
}
"""By kind of field; text for the others: options, weights and controls as JSON, images as URIs."""


def column_type(field: str) -> pa.DataType:
    """The type of the column of a field that a sweep sets."""
    return _COLUMN_TYPES.get(FIELD_KINDS[field], pa.string())


def table_type(field: str) -> pa.DataType:
    """The type of the column of a field of the table: its images may lie in it."""
    return IMAGE_TYPE if FIELD_KINDS[field] == "image" else column_type(field)


def sweep_type(field: str) -> pa.DataType:
    """The type of the column that says which value of a list a row has."""
    return pa.string() if FIELD_KINDS[field] == "pair of whole numbers" else column_type(field)


def as_cell(value: Any, arrow_type: pa.DataType) -> Any:
    """The value as a column of this type has it: JSON text where the type is text and the value is not."""
    if arrow_type == pa.string() and isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return value
