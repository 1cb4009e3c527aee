"""Facts about how an input file is cut into batches: how many rows, and which problem is whose."""

import io
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from actors.inputs.batch_sizes import BATCH_BYTES, rebatched
from actors.inputs.damaged_pages import Damage, lost_row_problems
from actors.inputs.dictionaries import Dictionaries
from actors.inputs.input_file import InputFile
from actors.inputs.texts import (
    MAX_KEPT_BYTES,
    MAX_NAME_BYTES,
    MAX_PROMPT_BYTES,
    SHOWN_BYTES,
    Problems,
    texts_and_problems,
)
from actors.inputs.value_sizes import size_problems, unfolded_bytes
from actors.inputs.values import MAX_KEPT_VALUE_BYTES, as_kept, as_kind
from schemas.columns.input_columns import map_columns
from schemas.columns.input_schemas import InputSchemas
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import RowError
from schemas.spec.job_spec import InputSpec

EIGHTH = BATCH_BYTES // 8 - 1000
"""The bytes of a value of which eight fill a batch, with a little room for what Parquet adds."""


def dictionaries_of(path: Path, tables: Sequence[pa.Table], **options: Any) -> Dictionaries:
    """The dictionaries of a file with a row group for each table."""
    with pq.ParquetWriter(path, tables[0].schema, compression="zstd", **options) as writer:
        for table in tables:
            writer.write_table(table)
    return Dictionaries(io.BytesIO(path.read_bytes()), pq.read_metadata(path))


@pytest.mark.parametrize(
    ("tables", "options", "num_rows"),
    [
        ([{"image": [b"x"] * 3}], {}, 64),
        ([{"image": [bytes(EIGHTH)] * 2}, {"image": [b"x"] * 20}], {"use_dictionary": False}, 8),
        ([{"image": [b"x"] * 20}, {"image": [bytes(EIGHTH)] * 2}], {"use_dictionary": False}, 8),
        ([{"image": [bytes(BATCH_BYTES + 1)]}], {"use_dictionary": False}, 1),
        ([{"image": [np.zeros(EIGHTH // 8, np.int8)]}], {}, 8),
        ([{"image": [bytes(EIGHTH)] * 20}], {"use_dictionary": True, "data_page_size": 4 * EIGHTH}, 8),
        (
            [{"image": ["x" * EIGHTH] * 20}],
            {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}},
            8,
        ),
        ([{"image": [{"bytes": bytes(EIGHTH), "path": None}] * 2}], {"use_dictionary": False}, 8),
    ],
    ids=["small", "first group", "last group", "huge row", "zeros", "dictionary", "delta", "struct"],
)
def test_a_batch_has_as_many_rows_as_memory_has_room_for(
    tmp_path: Path, tables: list[dict[str, Any]], options: dict[str, Any], num_rows: int
) -> None:
    """The largest rows of any of these row groups decide, as they are in memory and not in the file."""
    found = dictionaries_of(tmp_path / "in.parquet", [pa.table(table) for table in tables], **options)

    assert num_rows * 0.9 <= found.reading(0, ["image"], 64).num_rows <= num_rows
    assert found.reading(0, ["other"], 64).num_rows == 64


def test_texts_and_lists_of_images_are_read_with_their_dictionary(tmp_path: Path) -> None:
    """Not single images, of which only a few rows are read together, and nothing that has no dictionary."""
    columns = {"text": ["x"], "image": [b"x"], "images": [[b"x", b"x"]], "number": [1], "other": ["x"]}
    table = pa.table({name: values * 300 for name, values in columns.items()})
    read = ["text", "image", "images", "number"]

    folded = dictionaries_of(tmp_path / "a.parquet", [table, table]).reading(0, read, 64)
    plain = dictionaries_of(tmp_path / "b.parquet", [table], use_dictionary=["number"]).reading(0, read, 64)

    assert (folded.groups, folded.dictionaries) == (range(2), {"images.list.element", "text"})
    assert (plain.groups, plain.dictionaries) == (range(1), set())


def batch(*values: int, width: int = 8) -> pa.RecordBatch:
    """A batch of these numbers; `width` is the size in bytes of a further column in each row."""
    filler = pa.array([bytes(width)] * len(values), pa.binary(width))
    return pa.RecordBatch.from_arrays([pa.array(values), filler], ["n", "filler"])


def problem(name: str) -> RowError:
    return RowError("corrupt_page", name)


def test_small_batches_are_joined_and_their_problems_stay_with_their_rows() -> None:
    """Up to a number of rows; the problems of one joined batch are not the next one's."""
    found = [
        (batch(0, 1), {1: problem("1")}),
        (batch(2, 3), {0: problem("2")}),
        (batch(4), {}),
        (batch(5, 6, 7, 8), {2: problem("7")}),
        (batch(9), {0: problem("9")}),
        (batch(10), {}),
    ]

    joined = [(part["n"].to_pylist(), problems) for part, problems in rebatched(found, 5)]

    assert [numbers for numbers, _ in joined] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]
    assert [{row: each.message for row, each in problems.items()} for _, problems in joined] == [
        {1: "1", 2: "2"},
        {2: "7", 4: "9"},
        {},
    ]


def test_batches_are_joined_only_while_they_fit_in_memory() -> None:
    """Two of them have more bytes than a batch may have."""
    large: list[tuple[pa.RecordBatch, Problems]] = [(batch(i, width=5 * EIGHTH), {}) for i in range(3)]
    small: list[tuple[pa.RecordBatch, Problems]] = [(batch(i, width=2 * EIGHTH), {}) for i in range(5)]

    assert [part["n"].to_pylist() for part, _ in rebatched(large, 64)] == [[0], [1], [2]]
    assert [part["n"].to_pylist() for part, _ in rebatched(small, 64)] == [[0, 1, 2, 3], [4]]


def test_batches_with_list_views_are_not_joined() -> None:
    """pyarrow would cast a part of a joined one to empty lists."""
    views = pa.array([[1], [2]], pa.list_view(pa.int64()))
    single: list[tuple[pa.RecordBatch, Problems]] = [
        (pa.RecordBatch.from_arrays([views], ["views"]), {}) for _ in range(3)
    ]

    assert [part.num_rows for part, _ in rebatched(single, 64)] == [2, 2, 2]


def test_lost_rows_have_the_problem_of_the_first_damage() -> None:
    """Rows are counted in the row group, and the batch begins somewhere in it."""
    damages = [
        Damage(num_readable=12, problem=problem("late")),
        Damage(num_readable=10, problem=problem("early")),
        Damage(num_readable=14, problem=problem("last")),
    ]

    def lost(first_row: int, num_rows: int) -> dict[int, str]:
        problems = lost_row_problems(damages, first_row, num_rows)
        return {row: each.message for row, each in problems.items()}

    assert lost(0, 10) == {}
    assert lost(4, 8) == {6: "early", 7: "early"}
    assert lost(11, 5) == dict.fromkeys(range(5), "early")


@pytest.mark.parametrize("in_dictionary", [False, True])
@pytest.mark.parametrize(("field", "most"), [("prompt_2", MAX_PROMPT_BYTES), ("scheduler", MAX_NAME_BYTES)])
def test_a_text_may_be_as_long_as_its_field_allows(field: str, most: int, in_dictionary: bool) -> None:
    """Each row with a longer one fails, nulls do not, and of what is not UTF-8 the beginning is shown."""
    good, long, bad = b"x" * most, b"y" * (most + 1), b"\xff" * (SHOWN_BYTES + 9)
    values = pa.array([good, None, long, bad, b"", long], pa.binary()).view(pa.string())
    column = values.dictionary_encode() if in_dictionary else values

    texts, problems = as_kind(column, field)

    shown = ["x" * most, None, "y" * SHOWN_BYTES, "\ufffd" * SHOWN_BYTES, "", "y" * SHOWN_BYTES]
    assert texts.to_pylist() == shown
    assert {row: each.code for row, each in problems.items()} == {
        2: "text_too_long",
        3: "invalid_text",
        5: "text_too_long",
    }


def test_a_null_has_no_problem_of_its_dictionary() -> None:
    """Whatever the dictionary's first text is."""
    indices = pa.array([None, 0, None, 1], pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["long" * 9, "ok"]))

    texts, problems = texts_and_problems(column, "prompt", 8)

    assert texts.to_pylist() == [None, "long" * 9, None, "ok"]
    assert [*problems] == [1]


TEXTS_BY_NAME = pa.map_(pa.string(), pa.string())
LISTS = pa.array([["a"], ["bb", ""], None, ["ccc"]], pa.list_(pa.string()))
FIXED = pa.array([["a", "b"], ["cc", "d"], ["eee", "f"], ["g", "h"]], pa.list_(pa.string(), 2))
STRUCTS = pa.array([{"a": "x", "b": b"yy"}, {"a": None, "b": b"z"}, None])


@pytest.mark.parametrize(
    ("array", "sizes"),
    [
        (pa.array(["a", None, "ccc"]), [1, 0, 3]),
        (pa.array(["a", "bbbb", None, "a"]).dictionary_encode(), [1, 4, 0, 1]),
        (pa.array([1, None, 3], pa.int16()), [2, 2, 2]),
        (pa.array([True, False]), [1, 1]),
        (pa.array([[True] * 9, []], pa.list_(pa.bool_())), [9, 0]),
        (LISTS, [1, 2, 0, 3]),
        (LISTS.slice(1), [2, 0, 3]),
        (FIXED, [2, 3, 4, 2]),
        (FIXED.slice(1, 2), [3, 4]),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)).slice(1), [8]),
        (STRUCTS, [3, 1, 0]),
        (pa.array([[("k", "vv")], []], pa.map_(pa.string(), pa.string())), [3, 0]),
        (pa.nulls(2), [0, 0]),
    ],
    ids=str,
)
def test_the_size_of_each_value_is_what_it_takes_outside_of_its_dictionary(
    array: pa.Array, sizes: list[int]
) -> None:
    """Of a part of an array too."""
    assert unfolded_bytes(array).tolist() == sizes


def test_a_value_may_have_the_most_bytes() -> None:
    """Each larger one is a problem of its row."""
    array = pa.array([b"x" * 5, b"x" * 6, None, b"x" * 7], pa.binary())

    problems = size_problems(array, "note", 5, "kept_too_large")

    assert {row: each.message for row, each in problems.items()} == {
        1: "`note` has 6 bytes; at most 5 are allowed",
        3: "`note` has 7 bytes; at most 5 are allowed",
    }


def test_a_kept_text_may_be_longer_than_a_name() -> None:
    """Up to a megabyte; what is longer is cut, and its row fails."""
    column = pa.array(["x" * MAX_KEPT_BYTES, "y" * (MAX_KEPT_BYTES + 1)])

    kept, problems = as_kept(column, "note", column.type, column.type)

    assert kept.to_pylist() == ["x" * MAX_KEPT_BYTES, "y" * SHOWN_BYTES]
    assert [(row, each.code) for row, each in problems.items()] == [(1, "text_too_long")]


def test_each_invalid_value_is_told_to_its_own_row() -> None:
    """Values of another row are not quoted; the valid ones stay."""
    times = pa.array([1, 2 * 10**11, 3, 3 * 10**11], pa.int64()).view(pa.time64("us"))

    kept, problems = as_kept(times, "when", times.type, times.type)

    assert {row: ("2" if "200000000000" in each.message else "3") for row, each in problems.items()} == {
        1: "2",
        3: "3",
    }
    assert kept.is_valid().to_pylist() == [True, False, True, False]


def test_options_may_be_as_long_as_a_name() -> None:
    """Longer ones fail their row before they are read."""
    longest = "x" * (MAX_NAME_BYTES - 1)
    column = pa.array([[("a", longest)], [("a", longest + "x")], None], TEXTS_BY_NAME)

    options, problems = as_kind(column, "scheduler_options")

    assert options.to_pylist() == [f'{{"a":"{longest}"}}', None, None]
    assert [(row, each.code) for row, each in problems.items()] == [(1, "text_too_long")]


def test_a_value_that_is_too_large_hides_no_invalid_one() -> None:
    """Each row has its own error."""
    num_times = MAX_KEPT_VALUE_BYTES // 8 + 1
    times = pa.array(np.append(np.zeros(num_times, np.int64), [1, 2 * 10**11])).view(pa.time64("us"))
    lists = pa.ListArray.from_arrays([0, num_times, num_times + 1, num_times + 2], times)

    kept, problems = as_kept(lists, "when", lists.type, lists.type)

    assert {row: each.code for row, each in problems.items()} == {0: "kept_too_large", 2: "invalid_value"}
    assert kept.is_valid().to_pylist() == [False, True, False]


@pytest.mark.parametrize(
    ("field", "column", "values"),
    [
        ("seed", pa.array([2**64 - 1, None, 0], pa.uint64()), [2**64 - 1, None, 0]),
        ("seed", pa.array([1.0, None, 2.5]), [1.0, None, 2.5]),
        ("guidance_scale", pa.array([1, None], pa.int8()), [1.0, None]),
        ("row_id", pa.array([1, 2], pa.int8()), [1, 2]),
        ("row_id", pa.array([1, 2], pa.uint64()), ["1", "2"]),
        ("original_size", pa.array([[1, 2], None], pa.list_(pa.uint64())), [[1, 2], None]),
        (
            "scheduler_options",
            pa.array(
                [[("a", "1.5"), ("b", "x"), ("c", None), ("d", "true")], None, []], pa.map_("str", "str")
            ),
            ['{"a":1.5,"b":"x","d":true}', None, "{}"],
        ),
        ("scheduler_options", pa.array([{"a": 1, "b": None}, None]), ['{"a":1}', None]),
        ("image", pa.array([b"x", None]), [{"bytes": b"x", "path": None}, None]),
        ("image", pa.array(["a.png", None]), [{"bytes": None, "path": "a.png"}, None]),
        (
            "image",
            pa.array(
                [{"bytes": b"x", "path": None}, {"bytes": None, "path": "a"}, {"bytes": None, "path": None}],
                IMAGE_TYPE,
            ),
            [{"bytes": b"x", "path": None}, {"bytes": None, "path": "a"}, None],
        ),
    ],
    ids=str,
)
def test_a_column_of_any_usual_type_has_its_values(field: str, column: pa.Array, values: list[Any]) -> None:
    """In darkroom's own type for the field; a struct of two nulls is no image."""
    found, problems = as_kind(column, field)

    assert found.to_pylist() == values
    assert not problems


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_are_numbered_through_their_file(tmp_path: Path, statistics: bool) -> None:
    """From whichever row reading begins; ids and nulls are those of the file, in any order of asking."""
    path = tmp_path / "in.parquet"
    prompts = [None if i in (3, 64, 129) else f"p{i}" for i in range(130)]
    table = pa.table({"row_id": [f"r{i}" for i in range(130)], "prompt": prompts})
    pq.write_table(table, path, row_group_size=50, write_statistics=statistics)

    with InputFile(
        path.open("rb"), map_columns(InputSchemas({"x": table.schema}), InputSpec(path="x"))
    ) as file:
        groups = [file.row_group_of(row) for row in (0, 49, 50, 99, 100, 129)]
        decoded = next(file.decode_rows(57))
        later = list(file.read_rows(57))
        checked = list(file.read_for_checks(batch_size=64))
        ids = file.row_ids([129, 0, 64, 50, 49])
        nulls = file.num_nulls("prompt")

    assert groups == [0, 0, 1, 1, 2, 2]
    assert (decoded.first_row, decoded.num_rows) == (50, 50)
    assert [(part.first_row, part.num_rows) for part in later] == [(57, 43), (100, 30)]
    assert [text for part in later for text in part.fields["row_id"].to_pylist()] == [
        f"r{i}" for i in range(57, 130)
    ]
    absent = [
        part.first_row + int(row)
        for part in checked
        for row in np.flatnonzero(part.fields["prompt"].is_null())
    ]
    assert [(part.first_row, part.num_rows) for part in checked] == [(0, 64), (64, 64), (128, 2)]
    assert absent == [3, 64, 129]
    assert ids == ["r129", "r0", "r64", "r50", "r49"]
    assert nulls == 3


def test_rows_of_which_nothing_is_to_be_read_come_in_batches_too(tmp_path: Path) -> None:
    """As in a job of one route whose rows have prompts only."""
    path = tmp_path / "in.parquet"
    table = pa.table({"prompt": ["x"] * 130})
    pq.write_table(table, path, row_group_size=50)

    with InputFile(
        path.open("rb"), map_columns(InputSchemas({"x": table.schema}), InputSpec(path="x"))
    ) as file:
        batches = [*file.read_routing(batch_size=64)]

    assert [(part.first_row, part.num_rows) for part in batches] == [(0, 64), (64, 64), (128, 2)]


@pytest.mark.parametrize("precision", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_numbers_of_low_precision_are_read_by_their_shortest_decimal(precision: pa.DataType) -> None:
    """0.7 of 10 steps are 7 in each of them, and what cannot be used stays what it is."""
    written = [0.7, None, 7.5, float("inf"), 0.1]
    column = pa.array(np.array([value or 0 for value in written], precision.to_pandas_dtype()), precision)
    column = pc.if_else(
        pa.array([value is not None for value in written]), column, pa.scalar(None, precision)
    )

    values, problems = as_kind(column.slice(0, 5), "strength")

    assert (values.to_pylist(), problems) == (written, {})
    assert as_kind(column.slice(2), "strength")[0].to_pylist() == written[2:]


IDS = [uuid.UUID(int=7), None, uuid.UUID(int=2**100)]
IMAGES = [b"png", None, b"jpeg"]


@pytest.mark.parametrize(
    ("field", "column", "expected"),
    [
        (
            "row_id",
            pa.array([each and each.bytes for each in IDS], pa.uuid()),
            [each and str(each) for each in IDS],
        ),
        ("scheduler_options", pa.array(['{"a": 1}', None, "{}"], pa.json_()), ['{"a": 1}', None, "{}"]),
        ("prompt", pa.array(["a", None, "b"], pa.json_()), ["a", None, "b"]),
        (
            "seed",
            pa.ExtensionArray.from_storage(
                pa.opaque(pa.int32(), "bigserial", "a database"), pa.array([1, None, 2], pa.int32())
            ),
            [1, None, 2],
        ),
        (
            "image",
            pa.array(IMAGES, pa.binary_view()),
            [each and {"bytes": each, "path": None} for each in IMAGES],
        ),
    ],
    ids=["uuid", "json", "json as text", "opaque", "view"],
)
def test_a_type_that_means_the_same_is_read(
    tmp_path: Path, field: str, column: pa.Array, expected: list[Any]
) -> None:
    """From the file on: an extension type by its storage, a UUID by its text, a view as what it shows."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({field: column}), path)
    columns = map_columns(InputSchemas({"x": pq.read_schema(path)}), InputSpec(path="x"))

    with InputFile(path.open("rb"), columns) as file:
        (batch,) = file.read_rows(0)

    assert (batch.fields[field].to_pylist(), batch.problems) == (expected, {})


@pytest.mark.parametrize(
    "column_type",
    [
        pa.map_(pa.string(), pa.float32()),
        pa.map_(pa.string(), pa.float16()),
        pa.struct([("beta_end", pa.float32()), ("beta_start", pa.float16())]),
    ],
    ids=str,
)
def test_so_are_those_of_options(column_type: pa.DataType) -> None:
    """In maps and in structs, in whole columns and in their slices."""
    rows = [{"beta_end": 0.012}, None, {"beta_start": 0.5}, {}]
    plain = [row and [*row.items()] if pa.types.is_map(column_type) else row for row in rows]
    column = pa.array([[] if row == [] else row for row in plain], column_type)

    for first in (0, 2):
        values, problems = as_kind(column.slice(first), "scheduler_options")

        assert [None if text is None else json.loads(text) for text in values.to_pylist()] == rows[first:]
        assert problems == {}
