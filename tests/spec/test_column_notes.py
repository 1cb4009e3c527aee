"""Facts about what the plan says of the input's columns."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.columns.column_notes import column_notes
from schemas.columns.fields import used_fields
from schemas.columns.input_columns import map_columns
from schemas.columns.input_schemas import InputSchemas
from schemas.columns.sweep_columns import keeping_sweeps
from schemas.spec.job_spec import JobSpec
from tests.support.in_process import job_spec

TEXT, NUMBER = pa.string(), pa.int64()


def said(columns: dict[str, pa.DataType], task: str = "text2img", /, **section: Any) -> list[str]:
    """The notes on an input of one file with these columns."""
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "name": "notes",
            "input": {"path": "x", **section},
            "models": {"sd": {"checkpoint": "a/b"}},
            "routes": {task: {"model": "sd"}},
            "output": {"path": "out"},
        }
    )
    found = InputSchemas({"x": pa.schema([*columns.items()])})
    keeping = keeping_sweeps(spec, found)
    return column_notes(found, map_columns(found, keeping.input, used_fields(spec)), spec)


def test_every_column_is_accounted_for() -> None:
    columns = {"prompt": TEXT, "cfg": NUMBER, "license": TEXT, "author": TEXT, "seed": NUMBER}

    assert said(columns, keep=["author"]) == [
        "column `cfg` is read as `guidance_scale`",
        "columns read: prompt, seed",
        "columns not read: license",
    ]


def test_columns_of_a_sweep_are_kept_without_being_told() -> None:
    """Those that the spec keeps itself are no news. A column is not kept that one file lacks, or has with
    another type."""
    columns = {"prompt": TEXT, "sweep_prompt": TEXT, "sweep_seed": NUMBER}
    others = {"prompt": TEXT, "sweep_prompt": TEXT, "sweep_seed": TEXT, "sweep_eta": NUMBER}
    found = InputSchemas({"a": pa.schema([*columns.items()]), "b": pa.schema([*others.items()])})

    spec = keeping_sweeps(job_spec(Path("x"), Path("out"), input={"path": "x", "keep": ["note"]}), found)

    assert spec.input.keep == ["note", "sweep_prompt"]
    assert said(columns, keep=["sweep_seed"]) == [
        "columns read: prompt",
        "columns of a sweep, which the output keeps: sweep_prompt",
    ]


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        ("negitive_prompt", "did you mean `negative_prompt`?"),
        ("guidence_scale", "did you mean `guidance_scale`?"),
        ("num_inference_step", "did you mean `num_inference_steps`?"),
    ],
)
def test_a_column_of_a_misspelt_name_is_told_with_the_field_that_was_meant(column: str, hint: str) -> None:
    """It comes before those whose names mean nothing here, because a long list is cut."""
    others = {f"a{number}": TEXT for number in range(30)}

    assert said({"prompt": TEXT, **others, column: NUMBER})[-1].startswith(
        f"columns not read: {column} ({hint}), a0, a1"
    )


def test_a_field_that_no_route_reads_is_told() -> None:
    columns = {"prompt": TEXT, "image": pa.binary(), "mask": TEXT}

    assert said(columns)[-1] == (
        "columns not read: image (no route of this job reads it), "
        "mask (no route of this job reads `mask_image`)"
    )
    assert said(columns, "inpaint")[-1] == "columns read: prompt, image"


def test_a_guess_that_does_not_hold_is_told_with_its_reason() -> None:
    """Another column fills the field already, or the type does not fit."""
    columns = {"prompt": TEXT, "caption": TEXT, "steps": TEXT}

    assert said(columns)[-1] == (
        "columns not read: caption (`prompt` is read from `prompt`), "
        "steps (it is string, and `num_inference_steps` needs whole numbers)"
    )
    assert said({"prompt": TEXT, "seed": NUMBER}, columns={"seed": None})[-1] == "columns not read: seed"


def test_sizes_beside_a_url_are_perhaps_those_of_the_picture_there() -> None:
    """The images are generated in these sizes unless the spec says that the columns mean something else."""
    scraped = {"prompt": TEXT, "source_url": TEXT, "width": NUMBER, "height": NUMBER}
    says = (
        "width and height: read as the size of the image to be made; if it is that of the picture in `source"
    )

    assert said(scraped)[-1] == f"{says}_url`, set input.columns: {{width: null, height: null}}"
    assert says not in "\n".join(said(scraped, columns={"width": "width", "height": "height"}))
    assert says not in "\n".join(said(scraped, "img2img"))
    assert says not in "\n".join(said({"prompt": TEXT, "width": NUMBER, "height": NUMBER}))
