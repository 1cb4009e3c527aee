"""Facts about inputs of several files: folders whose names are columns, and columns of differing types."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.planning.plan import make_plan
from jobs.planning.row_scan import Findings
from jobs.survey.survey import Survey, make_survey
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from tests.support.engines import GreyEngine
from tests.support.in_process import Made, job_spec, make

Columns = dict[str, Any]


def spec_of(folder: Path, files: dict[str, Columns], **section: object) -> JobSpec:
    """A job of two routes that reads these files."""
    for name, columns in files.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
    return job_spec(
        folder / "in",
        folder / "out",
        input={"path": str(folder / "in"), **section},
        routes={"text2img": {"model": "sd"}, "small": {"task": "text2img", "model": "sd", "height": 64}},
    )


def made(spec: JobSpec) -> Made:
    return make(spec, GreyEngine())


def findings(spec: JobSpec) -> Findings:
    return make_plan(make_survey(spec))[1]


def refusal(spec: JobSpec) -> str:
    with pytest.raises(SpecError) as refused:
        make_survey(spec)
    return str(refused.value)


def notes(survey: Survey) -> str:
    return "\n".join(survey.notes)


PROMPTS: Columns = {"prompt": ["a", "b"]}


def test_the_names_of_folders_are_columns(tmp_path: Path) -> None:
    """They fill fields of every kind, are kept, and the plan says so. Percent signs and null are decoded."""
    spec = spec_of(
        tmp_path,
        {
            "task=small/seed=7/who=J%C3%BCrgen%20%2F/a.parquet": PROMPTS,
            "task=text2img/seed=8/who=__HIVE_DEFAULT_PARTITION__/a.parquet": PROMPTS,
            "task=__HIVE_DEFAULT_PARTITION__/seed=007/who=3/a.parquet": PROMPTS,
        },
        keep=["who"],
    )

    rows = sorted(made(spec).rows, key=lambda row: (row["seed"], str(row["who"])))

    assert [(row["task"], row["seed"], row["who"]) for row in rows[::2]] == [
        ("text2img", 7, "3"),
        ("small", 7, "Jürgen /"),
        ("text2img", 8, None),
    ]
    assert [(each.route, each.size, each.rows) for each in findings(spec).counts] == [
        ("small", "64x64", 2),
        ("text2img", "64x64", 4),
    ]
    said = notes(make_survey(spec))
    assert all(
        f"column `{name}` is read from the names of folders" in said for name in ("task", "seed", "who")
    )


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (["3", "-4"], pa.int64()),
        (["3", "__HIVE_DEFAULT_PARTITION__"], pa.int64()),
        (["3", "04"], pa.string()),
        (["3", "3.0"], pa.string()),
        (["b", "3"], pa.string()),
        (["3", "³"], pa.string()),
    ],
)
def test_a_folders_values_are_numbers_if_all_are_written_as_whole_numbers(
    tmp_path: Path, values: list[str], kept: pa.DataType
) -> None:
    """Whichever comes first: one output has one type, and no zero is lost."""
    spec = spec_of(tmp_path, {f"part={value}/a.parquet": PROMPTS for value in values}, keep=["part"])

    job = made(spec)

    assert pa.ipc.read_schema(pa.py_buffer(job.plan.job.schema)).field("part").type == kept
    expected = {None if "HIVE" in value else value for value in values}
    assert {row["part"] and str(row["part"]) for row in job.rows} == expected


def test_a_folders_foreign_name_is_recognised_but_never_as_an_id(tmp_path: Path) -> None:
    """All rows of the folder would have the same id."""
    spec = spec_of(tmp_path, {"cfg=3.5/id=9/a.parquet": PROMPTS})

    job = made(spec)

    assert {row["guidance_scale"] for row in job.rows} == {3.5}
    assert {row["row_id"] for row in job.rows} == {"a.parquet#0", "a.parquet#1"}
    assert "id (as the name of a folder it cannot be `row_id`)" in notes(make_survey(spec))


@pytest.mark.parametrize("name", ["seed=x", "guidance_scale=much", "seed=1.5"])
def test_a_folders_value_that_does_not_fit_its_field_is_named(tmp_path: Path, name: str) -> None:
    """Before anything is paid for, with the folder and the file."""
    said = refusal(
        spec_of(
            tmp_path,
            {
                "a.parquet/seed=1/guidance_scale=1/a.parquet": PROMPTS,
                f"seed=2/guidance_scale=2/{name}/b.parquet": PROMPTS,
            },
        )
    )

    assert f"the folder `{name}` of " in said
    assert "b.parquet" in said


def test_a_column_of_the_file_wins_over_its_folder_and_a_contradiction_is_told(tmp_path: Path) -> None:
    """Not if both say the same, and not about columns that nobody reads."""
    files = {
        "seed=1/kind=x/a.parquet": PROMPTS | {"seed": [1, 1], "kind": ["y", "y"]},
        "seed=2/kind=x/b.parquet": PROMPTS | {"seed": [5, 9], "kind": ["y", "y"]},
        "seed=3/kind=x/c.parquet": PROMPTS,
    }
    spec = spec_of(tmp_path, files)

    (said,) = findings(spec).contradictions

    assert "column `seed` of " in said
    assert "b.parquet: the folder's name says 2" in said
    assert said.endswith("the file's own column, which counts, 5 to 9")
    assert sorted(row["seed"] for row in made(spec).rows) == [1, 1, 3, 3, 5, 9]


def test_a_file_without_a_folder_that_others_have_is_refused(tmp_path: Path) -> None:
    """As one without a column that others have, whichever of them comes first."""
    files = {"a.parquet": PROMPTS, "seed=1/b.parquet": PROMPTS}

    said = refusal(spec_of(tmp_path, files))

    assert "in/a.parquet has no column `seed`, which" in said
    assert "b.parquet has; all files must have it" in said


@pytest.mark.parametrize("columns", [{"seed": [3, 4]}, {}])
def test_files_that_only_differ_in_spelling_agree(tmp_path: Path, columns: Columns) -> None:
    """Each is accepted if it would be alone. A file without rows needs no columns."""
    spellings = {
        "a": ([1, 2], pa.int32(), ["x", "y"], pa.string()),
        "b": ([3, 4], pa.int64(), ["x", "y"], pa.large_string()),
        "c": ([5.0, None], pa.float64(), ["x", "y"], pa.dictionary(pa.int8(), pa.string())),
        "d": ([6, 7], pa.uint8(), ["x", "y"], pa.string_view()),
        "e": ([None, None], pa.null(), ["x", "y"], pa.string()),
    }
    spec = spec_of(tmp_path, {})
    (tmp_path / "in").mkdir()
    for name, (seeds, seed_type, prompts, prompt_type) in spellings.items():
        schema = pa.schema([pa.field("prompt", prompt_type, nullable=name != "a"), ("seed", seed_type)])
        pq.write_table(
            pa.table({"prompt": prompts, "seed": seeds}, schema), tmp_path / "in" / f"{name}.parquet"
        )
    pq.write_table(pa.table(columns).slice(0, 0), tmp_path / "in" / "0.parquet")

    job = made(spec)

    assert {row["status"] for row in job.rows} == {"ok"}
    assert [row["prompt"] for row in job.rows] == ["x", "y"] * 5
    assert {1, 2, 3, 4, 5, 6, 7} < {row["seed"] for row in job.rows}


def test_kept_columns_are_promoted_to_a_common_type(tmp_path: Path) -> None:
    """As Arrow promotes: int32, null and double to double, and string to large_string."""
    kept = [
        (pa.array([1, 2], pa.int32()), pa.array(["x", "y"])),
        (pa.array([0.5, None]), pa.array(["x", "y"], pa.large_string())),
        (pa.nulls(2), pa.nulls(2)),
    ]
    files = {f"{i}.parquet": PROMPTS | {"score": score, "tag": tag} for i, (score, tag) in enumerate(kept)}

    job = made(spec_of(tmp_path, files, keep=["score", "tag"]))

    schema = pa.ipc.read_schema(pa.py_buffer(job.plan.job.schema))
    assert (schema.field("score").type, schema.field("tag").type) == (pa.float64(), pa.large_string())
    assert [row["score"] for row in job.rows] == [1, 2, 0.5, None, None, None]
    assert [row["tag"] for row in job.rows] == ["x", "y", "x", "y", None, None]


def test_a_kept_value_that_the_common_type_cannot_hold_fails_its_row(tmp_path: Path) -> None:
    """A double has 53 bits. The row says so, and no digit is lost in silence."""
    files = {
        "a.parquet": PROMPTS | {"hash": [2**53, 2**53 + 1]},
        "b.parquet": PROMPTS | {"hash": [0.5, 1.5]},
    }

    rows = made(spec_of(tmp_path, files, keep=["hash"])).rows

    assert [row["hash"] for row in rows] == [2.0**53, None, 0.5, 1.5]
    assert rows[1]["error_code"] == "invalid_value"
    assert "`hash` is double in the output, which cannot hold this value" in rows[1]["error_message"]


def test_kept_columns_without_a_common_type_are_refused_with_both(tmp_path: Path) -> None:
    files = {
        "a.parquet": PROMPTS | {"tag": ["x", "y"]},
        "b.parquet": PROMPTS | {"tag": [1, 2]},
    }

    said = refusal(spec_of(tmp_path, files, keep=["tag"]))

    assert "input.keep: column `tag` is int64 in" in said
    assert "and string in" in said


def test_ids_are_texts_in_all_files_or_numbers_in_all(tmp_path: Path) -> None:
    """`7` and 7 would be two rows in one file, and one in the output."""
    ids = {"a.parquet": PROMPTS | {"row_id": [1, 2]}, "b.parquet": PROMPTS | {"row_id": ["1", "2"]}}
    wide = {"c.parquet": PROMPTS | {"row_id": pa.array([3, 4], pa.int8())}, "a.parquet": ids["a.parquet"]}

    assert "column `row_id` is string in" in refusal(spec_of(tmp_path / "1", ids))
    assert [row["row_id"] for row in made(spec_of(tmp_path / "2", wide)).rows] == [1, 2, 3, 4]


def test_kept_extension_types_are_kept_by_their_storage(tmp_path: Path) -> None:
    """A UUID by its text. Readers that do not know the type open the output."""
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16), None], pa.binary(16)))
    texts = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(['{"a":1}', "[]"]))
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8, dtype=np.int32).reshape(2, 2, 2))
    files = {"a.parquet": PROMPTS | {"uuid": uuids, "json": texts, "tensor": tensors}}

    rows = made(spec_of(tmp_path, files, keep=["uuid", "json", "tensor"])).rows

    assert [row["uuid"] for row in rows] == ["00000000-0000-0000-0000-000000000000", None]
    assert [row["json"] for row in rows] == ['{"a":1}', "[]"]
    assert [row["tensor"] for row in rows] == [[0, 1, 2, 3], [4, 5, 6, 7]]
