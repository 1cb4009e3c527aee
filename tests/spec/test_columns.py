"""Facts about which column of the input becomes which field of a row."""

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from schemas.columns.column_types import id_type
from schemas.columns.fields import FIELD_KINDS, used_fields
from schemas.columns.input_columns import ColumnMap, map_columns
from schemas.columns.input_schemas import InputSchemas
from schemas.columns.output_columns import IMAGE_TYPE, column_problems, output_schema
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import SpecError
from schemas.spec.job_spec import InputSpec, JobSpec
from schemas.wording.foreign_names import FOREIGN_NAMES
from tests.support.checkpoints import model_card

LATER_ORDER = pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())])


def mapped(columns: dict[str, pa.DataType], /, **spec: object) -> ColumnMap:
    return map_columns(
        InputSchemas({"x": pa.schema(list(columns.items()))}), InputSpec.model_validate({"path": "x", **spec})
    )


def refusal(columns: dict[str, pa.DataType], /, **spec: object) -> str:
    with pytest.raises(SpecError) as refused:
        mapped(columns, **spec)
    return str(refused.value)


def test_columns_with_darkrooms_names_are_the_fields() -> None:
    """A column that has a field's name is that field, in the fields' own order; others are not read."""
    found = mapped({"seed": pa.int64(), "license": pa.string(), "prompt": pa.string(), "image": IMAGE_TYPE})

    assert list(found.fields.items()) == [("prompt", "prompt"), ("image", "image"), ("seed", "seed")]
    assert not found.recognised
    assert found.columns() == ["prompt", "image", "seed"]


def test_the_spec_names_a_fields_column() -> None:
    """`input.columns` beats a column that has the field's own name, and is not reported as a guess."""
    found = mapped({"prompt": pa.string(), "short": pa.string()}, columns={"prompt": "short"})

    assert found.fields == {"prompt": "short"}
    assert not found.recognised


def test_a_column_that_the_spec_gives_to_a_field_fills_no_other_one() -> None:
    """Whatever its own name is, in darkroom's words or in another tool's."""
    columns = {"prompt": pa.string(), "prompt_2": pa.string(), "steps": pa.int64()}

    found = mapped(columns, columns={"negative_prompt": "prompt_2", "seed": "steps"})

    assert found.fields == {"prompt": "prompt", "negative_prompt": "prompt_2", "seed": "steps"}


@pytest.mark.parametrize("name", ["prompt", "note"])
def test_a_column_that_is_read_is_there_once(name: str) -> None:
    """Kept columns too; a column that nobody reads may be there as often as it likes."""
    twice = pa.schema([("prompt", pa.string()), ("note", pa.string()), (name, pa.string())])
    spec = InputSpec(path="x", keep=["note"])

    with pytest.raises(SpecError, match=f"x has 2 columns of the name `{name}`"):
        map_columns(InputSchemas({"x": twice}), spec)
    unread = pa.schema([*twice, ("x", pa.int8()), ("x", pa.int8())]).remove(2)
    assert [*map_columns(InputSchemas({"x": unread}), spec).keep] == ["note"]


def test_the_spec_leaves_a_field_unread() -> None:
    """A dataset's own `height` and `WIDTH` need not be what is asked for: null turns a field off."""
    columns = {"prompt": pa.string(), "height": pa.int64(), "WIDTH": pa.int64(), "text": pa.string()}

    found = mapped(columns, columns={"height": None, "width": None})

    assert found.fields == {"prompt": "prompt"}


def test_one_column_may_fill_two_fields() -> None:
    """What the spec says twice is done twice, and the column is read once."""
    found = mapped(
        {"text": pa.string()}, columns={"prompt": "text", "negative_prompt": "text"}, keep=["text"]
    )

    assert found.fields == {"prompt": "text", "negative_prompt": "text"}
    assert found.columns() == ["text"]


@pytest.mark.parametrize(("foreign", "field"), FOREIGN_NAMES.items())
def test_a_foreign_name_is_recognised_and_reported(foreign: str, field: str) -> None:
    """What other tools call a field is understood in any case, and listed as recognised."""
    column = foreign.upper()
    kinds = {"image": pa.binary(), "number": pa.float64(), "whole number": pa.int32()}

    found = mapped({column: kinds.get(FIELD_KINDS[field], pa.string())})

    assert found.fields == {field: column}
    assert found.recognised == {field: column}


def test_a_fields_own_name_in_capitals_is_a_foreign_one() -> None:
    """`Prompt` is taken for `prompt`, and said to be."""
    found = mapped({"Prompt": pa.string(), "SEED": pa.int64()})

    assert found.fields == {"prompt": "Prompt", "seed": "SEED"}
    assert found.recognised == found.fields


def test_an_own_name_beats_a_foreign_one() -> None:
    """With a `prompt` column there, `caption` is just another column."""
    found = mapped({"caption": pa.string(), "prompt": pa.string()})

    assert found.fields == {"prompt": "prompt"}


def test_two_foreign_names_for_one_field_are_not_guessed_between() -> None:
    """The refusal names both columns, and shows how to choose."""
    said = refusal({"caption": pa.string(), "TEXT": pa.string()})

    assert said == (
        "both `caption` and `TEXT` could be the field `prompt`; choose one with input.columns: {prompt: TEXT}"
    )


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            {"columns": {"prompt": "captoin"}},
            "input.columns.prompt: the input has no column `captoin` (did you mean `Caption`?); it has Cap",
        ),
        ({"columns": {"promt": "x"}}, "darkroom has no field `promt` (did you mean `prompt`?)"),
        ({"columns": {"zzz": "x"}}, "darkroom has no field `zzz`; fields are row_id, task, model, prompt,"),
        ({"keep": ["licence"]}, "input.keep: the input has no column `licence`; it has Caption, x"),
    ],
)
def test_a_column_that_is_not_there_is_answered_with_those_that_are(
    spec: dict[str, object], says: str
) -> None:
    """A misspelt column or field is named with the nearest one, or with all."""
    assert says in refusal({"Caption": pa.string(), "x": pa.string()}, **spec)


@pytest.mark.parametrize(
    ("field", "arrow_type", "wants"),
    [
        ("prompt", pa.int64(), "text"),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.list_(pa.int8()))]), "an image struct"),
        ("image", pa.struct([("bytes", pa.list_(pa.int8())), ("path", pa.string())]), "an image struct"),
        (
            "image",
            pa.struct([("bytes", pa.binary()), ("path", pa.string()), ("bytes", pa.binary())]),
            "an image struct",
        ),
        ("prompt", pa.binary(), "text"),
        ("prompt", pa.list_(pa.string()), "text"),
        ("row_id", pa.float64(), "text or whole numbers"),
        ("row_id", pa.null(), "text or whole numbers"),
        ("seed", pa.string(), "whole numbers"),
        ("seed", pa.bool_(), "whole number"),
        ("guidance_scale", pa.string(), "number"),
        ("guidance_scale", pa.decimal128(5, 2), "number"),
        ("image", pa.int64(), "an image struct<bytes, path>, bytes, or text with a URI"),
        ("image", pa.list_(pa.uint8()), "an image struct<bytes, path>, bytes, or text with a URI"),
        ("image", pa.struct([("url", pa.string())]), "an image struct<bytes, path>"),
        ("scheduler", pa.timestamp("s"), "text"),
    ],
)
def test_a_column_of_a_useless_type_is_refused(field: str, arrow_type: pa.DataType, wants: str) -> None:
    """The refusal has the column, its type, what would do, and how to leave the field out."""
    said = refusal({field: arrow_type})

    assert said.startswith(f"column `{field}` is {arrow_type}, but the field `{field}` needs {wants}")
    assert f"{{{field}: null}}" in said


@pytest.mark.parametrize(
    ("field", "keys", "says"),
    [
        (
            "controls",
            ["controlnet", "scale"],
            "`scale`, which is not one of controlnet, controlnet_condition",
        ),
        ("controls", ["controlnet", "control_guidance_ende"], "(did you mean `control_guidance_end`?)"),
        ("controls", ["controlnet", "guess_mode"], "`guess_mode`, which is not one of"),
        (
            "loras",
            ["name", "weight", "weigth"],
            "`weigth`, which is not one of name, weight, sha256 (did you",
        ),
    ],
)
def test_a_key_of_a_list_that_nothing_reads_is_refused(field: str, keys: list[str], says: str) -> None:
    """It would be left out of every row. The hash that an output has beside may stay."""
    texts = ("controlnet", "name", "sha256")

    def column(*names: str) -> pa.DataType:
        leaves = [(name, pa.string() if name in texts else pa.float64()) for name in names]
        return pa.list_(pa.struct(leaves))

    assert says in refusal({field: column(*keys)})
    assert mapped({field: column(*keys[:-1], "sha256")}).fields == {field: field}


@pytest.mark.parametrize(
    ("field", "arrow_type"),
    [
        ("prompt", pa.large_string()),
        ("prompt", pa.string_view()),
        ("prompt", pa.dictionary(pa.int32(), pa.string())),
        ("prompt", pa.null()),
        ("row_id", pa.int32()),
        ("row_id", pa.uint64()),
        ("row_id", pa.dictionary(pa.int8(), pa.string())),
        ("seed", pa.uint64()),
        ("seed", pa.float64()),
        ("num_inference_steps", pa.int8()),
        ("guidance_scale", pa.float16()),
        ("guidance_scale", pa.int32()),
        ("image", pa.string()),
        ("image", pa.large_binary()),
        ("image", LATER_ORDER),
        ("mask_image", pa.null()),
    ],
)
def test_every_usual_spelling_of_a_type_is_taken(field: str, arrow_type: pa.DataType) -> None:
    """Widths, dictionaries, both orders of an image's parts and columns of nothing but nulls are fine."""
    assert mapped({field: arrow_type}).fields == {field: field}


@pytest.mark.parametrize("name", ["negativePrompt", "NegativePrompt", "Negative Prompt", "negative-prompt"])
def test_a_name_may_be_written_in_any_usual_way(name: str) -> None:
    assert mapped({"prompt": pa.string(), name: pa.string()}).recognised == {"negative_prompt": name}


def test_a_guess_refuses_no_job() -> None:
    """A foreign name whose column cannot fill its field is not that field."""
    columns = {"prompt": pa.string(), "depth": pa.int64(), "steps": pa.string(), "key": pa.float64()}

    assert mapped(columns).fields == {"prompt": "prompt"}


def test_only_fields_that_a_route_can_use_are_read() -> None:
    """A column of another job's field may have any type. Texts, ids, seeds and routes are for every job."""
    columns = InputSchemas({"x": pa.schema([(name, pa.bool_()) for name in ("image", "strength", "cfg")])})
    texts = InputSchemas(
        {"x": pa.schema([("id", pa.string()), ("prompt_2", pa.string()), ("seed", pa.int8())])}
    )
    used = used_fields(job_of({"text2img": {"model": "sd"}}))

    assert not map_columns(columns, InputSpec(path="x"), used).fields
    assert {*map_columns(texts, InputSpec(path="x"), used).fields} == {"row_id", "prompt_2", "seed"}
    assert {"image", "strength"} <= used_fields(job_of({"img2img": {"model": "sd"}}))
    assert "depth_map" in used_fields(job_of({"own": {"task": "depth2img", "model": "sd"}}))


def test_whole_numbers_with_nulls_from_pandas_are_taken() -> None:
    """pandas makes floats of whole numbers as soon as one is missing."""
    frame = pd.DataFrame({"prompt": ["a", "b"], "seed": [1, None], "num_inference_steps": [None, 20]})
    schema = pa.Table.from_pandas(frame).schema

    found = map_columns(InputSchemas({"x": schema}), InputSpec(path="x"))

    assert schema.field("seed").type == pa.float64()
    assert set(found.fields) == {"prompt", "seed", "num_inference_steps"}


def test_ids_stay_numbers_where_64_bits_hold_them() -> None:
    """Unsigned 64-bit ids, hashes mostly, do not fit the output's int64 and become text."""
    kept = [
        id_type(kind) for kind in (pa.int8(), pa.uint32(), pa.int64(), pa.dictionary(pa.int8(), pa.int64()))
    ]
    changed = [id_type(kind) for kind in (pa.uint64(), pa.string(), pa.dictionary(pa.int8(), pa.string()))]

    assert set(kept) == {pa.int64()}
    assert set(changed) == {pa.string()}


def job_of(routes: dict[str, Any], models: Collection[str] = ("sd",), keep: Sequence[str] = ()) -> JobSpec:
    return JobSpec.model_validate(
        {
            "version": 1,
            "name": "columns",
            "input": {"path": "x", "keep": [*keep]},
            "models": {name: {"checkpoint": "a/b"} for name in models},
            "routes": routes,
            "output": {"path": "out"},
        }
    )


def written(
    families: dict[str, str], routes: dict[str, Any], keep: dict[str, pa.DataType] | None = None
) -> pa.Schema:
    """The output's schema of a job with these models and routes."""
    kept = keep or {}
    spec = job_of(routes, models=families, keep=[*kept])
    models = {name: model_card(family=family) for name, family in families.items()}
    columns = pa.schema([("prompt", pa.string()), *kept.items()])
    return output_schema(spec, models, map_columns(InputSchemas({"x": columns}), spec.input))


def hugging_face(schema: pa.Schema) -> dict[str, Any]:
    """The features that Hugging Face reads from a schema."""
    return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])


def test_the_output_has_a_column_for_whatever_a_row_may_have() -> None:
    """A row may name any model of the job, also one that no route names."""
    routes = {"text2img": {"model": "sd"}, "img2img": {"model": "sd", "keep_steps": True}}

    plain = written({"sd": "sd"}, {"text2img": {"model": "sd"}})
    mixed = written({"sd": "sd", "xl": "sdxl"}, routes)

    assert {"prompt", "negative_prompt_truncated", "guidance_rescale", "row_id"} <= {*plain.names}
    assert not {"prompt_2", "original_size", "strength", "depth", "step_images"} & {*plain.names}
    assert {"prompt_2", "negative_prompt_2_truncated", "original_size", "strength"} <= {*mixed.names}
    assert "step_images" in mixed.names
    assert hugging_face(plain) == {"image": {"_type": "Image"}}
    assert hugging_face(mixed).keys() == {"image", "step_images"}


def test_hugging_face_is_told_of_every_column_of_images() -> None:
    """Of depth maps, of the images of steps, and of images that are kept; another struct is none."""
    keep = {"photo": IMAGE_TYPE, "photos": pa.list_(IMAGE_TYPE), "other": LATER_ORDER, "note": pa.string()}

    schema = written({"rgbd": "ldm3d"}, {"ldm3d": {"model": "rgbd", "keep_steps": True}}, keep)

    # datasets 3 and later read `Sequence` as a list; `List` is what datasets 4 and later call it.
    images = {"_type": "Sequence", "feature": {"_type": "Image"}}
    assert hugging_face(schema) == {
        **{name: {"_type": "Image"} for name in ("depth", "image", "photo")},
        **dict.fromkeys(("photos", "step_images"), images),
    }
    assert [schema.field(name).type for name in keep] == [*keep.values()]
    assert not column_problems(schema)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda schema: schema.append(pa.field("status", pa.string())), "there are 2 columns `status`"),
        (lambda schema: schema.remove(schema.get_field_index("nsfw")), "column `nsfw` is missing"),
        (
            lambda schema: schema.set(schema.get_field_index("depth"), pa.field("depth", pa.binary())),
            "column `depth` is binary, not struct",
        ),
    ],
)
def test_a_part_that_lacks_a_column_or_has_another_one_is_told_from_ours(
    change: Callable[[pa.Schema], pa.Schema], problem: str
) -> None:
    """Optional columns are looked at where they are."""
    schema = written({"rgbd": "ldm3d"}, {"ldm3d": {"model": "rgbd"}})

    (found,) = column_problems(change(schema))

    assert found.startswith(problem)


@pytest.mark.parametrize(
    "error",
    [pa.ArrowInvalid("x"), OSError("x"), UnicodeDecodeError("utf-8", b"x", 0, 1, "x")],
)
def test_what_a_parquet_reader_raises_is_told_as_the_files_fault(error: Exception) -> None:
    """A name in a footer may not be UTF-8; our own mistakes stay what they are."""
    with pytest.raises(SpecError, match=r"a\.parquet cannot be read: "), reading():
        raise error
    with pytest.raises(KeyError), reading():
        raise KeyError("x")


def reading() -> AbstractContextManager[None]:
    """Errors of a reader as a file's."""
    return parquet_errors_as(SpecError, "a.parquet cannot be read")
