"""Files of kilobytes that hold gigabytes, and honest ones whose rows are large."""

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.images.input_images import MAX_IMAGE_FILE_BYTES
from actors.images.spool import Spool, SpooledImage, encoded_bytes
from actors.inputs.input_file import InputFile
from actors.inputs.values import MAX_KEPT_VALUE_BYTES
from actors.rows.kept_columns import MAX_KEPT_BYTES, KeptCapacity, kept_bytes
from actors.rows.shard_reader import ShardReader
from actors.storage.stores import Stores
from schemas.columns.input_columns import map_columns
from schemas.columns.input_schemas import InputSchemas
from schemas.spec.job_spec import InputSpec
from tests.support.engines import GreyEngine
from tests.support.in_process import Made, job_spec, make, plan_for, write_rows

TOO_MUCH_MB = 700
MEGABYTE = 1 << 20

pytestmark = pytest.mark.timeout(120)


def peak_mb() -> int:
    """The most memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


@contextmanager
def little_memory() -> Iterator[None]:
    """Checks that not much is needed inside."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is counted anew.
    before = peak_mb()
    yield
    assert peak_mb() - before < TOO_MUCH_MB


def bomb(num_rows: int, value: Any, arrow_type: pa.DataType) -> pa.Array:
    """The value in each row: it once, in a dictionary, and its number."""
    numbers = pa.array([0] * num_rows, pa.int32())
    return pa.DictionaryArray.from_arrays(numbers, pa.array([value], arrow_type))


def write_small(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    """A file that is small, though its values are not."""
    options = {"compression": "zstd", "store_schema": False, "write_statistics": False} | options
    pq.write_table(pa.table(columns), path, **options)
    return path


def opened(path: Path, *keep: str) -> InputFile:
    """As a job reads it."""
    return InputFile(
        open(path, "rb"),
        map_columns(InputSchemas({"x": pq.read_schema(path)}), InputSpec(path="x", keep=[*keep])),
    )


def codes(made: Made) -> dict[str | None, int]:
    """How many rows have which error code."""
    found = [row["error_code"] for row in made.rows]
    return {code: found.count(code) for code in found}


@pytest.mark.parametrize("column", ["prompt", "task", "row_id", "scheduler_options", "image", "note"])
def test_a_dictionary_bomb_is_not_unfolded(tmp_path: Path, column: str) -> None:
    """A file of a kilobyte with ten megabytes in each of its 20,000 rows: 200 GB."""
    num_rows = 20_000
    columns = {
        "prompt": pa.array(["p"] * num_rows),
        "row_id": pa.array([*map(str, range(num_rows))]),
        column: bomb(num_rows, "x" * 10_000_000, pa.string()),
    }
    path = write_small(tmp_path / "in.parquet", columns, dictionary_pagesize_limit=1 << 30)

    with little_memory(), opened(path, *["note"] * (column == "note")) as file:
        batches = [*file.read_for_checks(), next(file.read_rows(0)), *file.read_routing(with_ids=True)]

    assert path.stat().st_size < 200_000
    assert sum(len(batch.problems) for batch in batches) >= 64
    assert {problem.code for batch in batches for problem in batch.problems.values()} == {"text_too_long"}


def test_rows_that_compress_to_nothing_are_read_few_at_a_time(tmp_path: Path) -> None:
    """Without a dictionary the footer says how large they are."""
    path = tmp_path / "in.parquet"
    column = pa.array(["x" * 1_000_000] * 400)
    pq.write_table(
        pa.table({"prompt": column, "task": column}), path, compression="zstd", use_dictionary=False
    )
    with opened(path) as file:
        largest = max(batch.num_rows for batch in file.read_for_checks())

    assert path.stat().st_size < 1_000_000
    assert largest < 300


def test_lists_that_unfold_to_gigabytes_are_read_few_at_a_time(tmp_path: Path) -> None:
    """Zeros are counted, not written: 100 MB in each of 10 rows. Of one the beginning is told."""
    path, num_rows, length = tmp_path / "in.parquet", 10, 12_000_000
    lists = pa.ListArray.from_arrays([0, length], np.zeros(length, np.int64))
    with pq.ParquetWriter(path, pa.schema({"prompt": pa.string(), "original_size": lists.type})) as writer:
        for _ in range(num_rows):
            writer.write_table(pa.table({"prompt": ["x"], "original_size": lists}))

    with opened(path) as file:
        largest = max(batch.num_rows for batch in file.read_for_checks())

    assert path.stat().st_size < 1_000_000
    assert largest < 3


def test_texts_that_repeat_the_one_before_are_read_few_at_a_time(tmp_path: Path) -> None:
    """In Parquet's encoding DELTA_BYTE_ARRAY each is two numbers, and a megabyte in memory."""
    columns = {"prompt": ["x" * MEGABYTE] * 1_000}
    path = write_small(
        tmp_path / "in.parquet",
        columns,
        use_dictionary=False,
        column_encoding={"prompt": "DELTA_BYTE_ARRAY"},
    )
    del columns

    with little_memory(), opened(path) as file:
        num_rows = sum(batch.num_rows for batch in file.read_for_checks())

    assert path.stat().st_size < 10_000
    assert num_rows == 1_000


def test_paths_that_may_be_of_no_image_are_read_few_at_a_time(tmp_path: Path) -> None:
    """Whether one is neither bytes nor a path, the footer does not say."""
    paths = pa.array(["x" * MEGABYTE] * 1_000 + [None])
    pictures = pa.StructArray.from_arrays([pa.nulls(1_001, pa.binary()), paths], names=["bytes", "path"])
    path = write_small(
        tmp_path / "in.parquet",
        {"prompt": ["x"] * 1_001, "image": pictures},
        use_dictionary=False,
        column_encoding={"image.path": "DELTA_BYTE_ARRAY"},
        write_statistics=True,
    )
    del paths, pictures

    with little_memory(), opened(path) as file:
        num_images = sum(batch.present["image"].sum() for batch in file.read_for_checks())

    assert path.stat().st_size < 10_000_000
    assert num_images == 1_000


def test_honest_texts_of_that_encoding_come_in_whole_batches(tmp_path: Path) -> None:
    """They are read few at a time too, and put together again, each at its row."""
    texts = [f"a fox, for the {i}th time" for i in range(20_000)]
    texts[15_000] += "x" * 70_000
    encoding = {"prompt": "DELTA_BYTE_ARRAY"}
    path = write_small(
        tmp_path / "in.parquet", {"prompt": texts}, use_dictionary=False, column_encoding=encoding
    )

    with opened(path) as file:
        batches = [*file.read_rows(0, batch_size=10_000)]

    assert len(batches) < 5
    assert [batch.first_row + row for batch in batches for row in batch.problems] == [15_000]
    assert [text for batch in batches for text in batch.fields["prompt"].to_pylist()][15_001:] == texts[
        15_001:
    ]


def test_texts_behind_a_dictionary_that_was_given_up_are_read_few_at_a_time(tmp_path: Path) -> None:
    """Read with it, pyarrow would gather the whole row group."""
    texts = [f"{i}" + "x" * MEGABYTE for i in range(1_000)]
    path = write_small(tmp_path / "in.parquet", {"prompt": texts}, write_batch_size=1)
    del texts

    with little_memory(), opened(path) as file:
        num_rows = sum(batch.num_rows for batch in file.read_for_checks())

    assert path.stat().st_size < 1_000_000
    assert num_rows == 1_000


LIST = pa.list_(pa.string())
MAP = pa.map_(pa.string(), pa.string())


@pytest.mark.parametrize(
    ("column", "code", "arrow_type"),
    [
        ("note", "kept_too_large", LIST),
        ("note", "kept_too_large", MAP),
        ("scheduler_options", "text_too_long", MAP),
    ],
    ids=str,
)
def test_a_list_of_one_row_is_not_unfolded(
    tmp_path: Path, column: str, code: str, arrow_type: pa.DataType
) -> None:
    """A hundred thousand times the same megabyte; the row fails alone."""
    num_values = 100_000
    texts = bomb(num_values, "x" * MEGABYTE, pa.string())
    offsets = pa.array([0, num_values, num_values], pa.int32())
    if arrow_type == MAP:
        lists = pa.MapArray.from_arrays(offsets, bomb(num_values, "k", pa.string()), texts)
    else:
        lists = pa.ListArray.from_arrays(offsets, texts)
    columns = {"row_id": ["bad", "good"], "prompt": ["x", "x"], column: lists}
    path = write_small(tmp_path / "in.parquet", columns)
    spec = job_spec(path, tmp_path / "out", input={"path": str(path), "keep": ["note"] * (column == "note")})

    with little_memory():
        made = make(spec, GreyEngine())

    assert [row["error_code"] for row in made.rows] == [code, None]


def large_image() -> bytes:
    """A PNG of five megabytes, for what is behind its pixels."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "green").save(file, "PNG")
    return file.getvalue() + np.random.default_rng(0).bytes(5 * MEGABYTE)


@pytest.mark.parametrize("form", ["binary", "struct"])
def test_an_image_that_all_rows_share_is_held_once(tmp_path: Path, form: str) -> None:
    """It is once in the file, too."""
    num_rows, data = 400, large_image()
    pictures = bomb(num_rows, data, pa.binary())
    if form == "struct":
        paths = pa.nulls(num_rows, pa.string())
        pictures = pa.StructArray.from_arrays([pictures, paths], names=["bytes", "path"])
    columns = {"prompt": ["x"] * num_rows, "task": ["img2img"] * num_rows, "image": pictures}
    path = write_small(tmp_path / "in.parquet", columns)

    with little_memory():
        made = make(job_spec(path, tmp_path / "out"), GreyEngine())

    assert path.stat().st_size < 6 * MEGABYTE
    assert codes(made) == {None: num_rows}


def test_images_beyond_the_memory_for_them_wait_on_disk() -> None:
    """Equal ones are held once; what fits to the last byte stays; a file that was cut off is noticed."""
    pictures = [bytes([i]) * 1_000 for i in range(6)]
    spool = Spool(memory_bytes=2_000)

    held = [spool.add(image) for image in pictures]

    assert [isinstance(image, SpooledImage) for image in held] == [False] * 2 + [True] * 4
    assert [encoded_bytes(image) for image in held] == pictures
    assert [spool.add(bytes(image)) for image in pictures] == held
    with pytest.raises(OSError, match="500 bytes of a temporary file are missing"):
        spool.read(3_500, 1_000)


def test_an_image_file_of_hundreds_of_megabytes_fails_its_row(tmp_path: Path) -> None:
    """As one that a row names does."""
    pictures = pa.array([large_image(), bytes(MAX_IMAGE_FILE_BYTES + 1)], pa.binary())
    columns = {"prompt": ["x", "x"], "task": ["img2img", "img2img"], "image": pictures}
    path = write_small(tmp_path / "in.parquet", columns, use_dictionary=False)

    made = make(job_spec(path, tmp_path / "out"), GreyEngine())

    assert [row["error_code"] for row in made.rows] == [None, "image_too_large"]
    assert made.rows[1]["error_message"].startswith("`image` has 268,435,457 bytes; at most")


def test_a_kept_value_that_is_too_large_fails_its_row_alone(tmp_path: Path) -> None:
    """The largest that is allowed is kept."""
    values = [bytes(MAX_KEPT_VALUE_BYTES), bytes(MAX_KEPT_VALUE_BYTES + 1)]
    path = write_small(tmp_path / "in.parquet", {"prompt": ["x", "x"], "note": values})

    made = make(job_spec(path, tmp_path / "out", input={"path": str(path), "keep": ["note"]}), GreyEngine())

    assert [row["error_code"] for row in made.rows] == [None, "kept_too_large"]
    assert [row["note"] for row in made.rows] == [values[0], None]


def test_rows_that_keep_more_than_a_part_has_room_for_fail(tmp_path: Path) -> None:
    """Counted as often as the part has it: of each image. Those after them that fit to the byte are made."""
    records = [{"row_id": name, "prompt": "x", "num_images_per_prompt": 2, "note": name} for name in "abcd"]
    records.append(records[0] | {"row_id": "e", "prompt": None})
    path = write_rows(tmp_path / "in.parquet", records)
    plan = plan_for(job_spec(path, tmp_path / "out", input={"path": str(path), "keep": ["note"]}))
    with closing(ShardReader(plan.job, Stores())) as reader:
        rows = reader.read(next(plan.shards()), Spool())
    half = MAX_KEPT_BYTES // 2

    fitted = [*KeptCapacity().fit(rows, [half - 10, 11, 0, 10, 1])]

    assert [row.problem and row.problem.code for row in fitted] == [
        *(None, "kept_too_large", None, None),
        "missing_prompt",
    ]
    assert [[*row.keep] for row in fitted] == [["note"], [], ["note"], ["note"], []]
    assert fitted[1].num_images == 1
    assert fitted[1].problem
    assert "take 22 bytes in its part" in fitted[1].problem.message


def test_the_bytes_of_every_kept_column_count_for_their_own_row(tmp_path: Path) -> None:
    """Over the batches in which they are read."""
    columns: dict[str, Any] = {"row_id": [f"{i}" for i in range(70)], "prompt": ["x"] * 70}
    columns |= {"note": ["x" * i for i in range(70)], "more": [b"y" * (i % 2) for i in range(70)]}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")

    with opened(tmp_path / "in.parquet", "note", "more") as file:
        sizes = [kept_bytes(batch, [3, 0, 5]) for batch in file.read_rows(0)]

    assert sizes == [[4, 0, 6], [68, 64, 70]]


def test_the_room_for_kept_columns_is_that_of_a_whole_shard(tmp_path: Path) -> None:
    """Its batches share it. The values are equal, so that here they take little memory."""
    most = MAX_KEPT_BYTES // MAX_KEPT_VALUE_BYTES
    num_rows = most + 2
    value = bomb(num_rows, "x" * MAX_KEPT_VALUE_BYTES, pa.string())
    lists = pa.ListArray.from_arrays(pa.array(range(num_rows + 1), pa.int32()), value)
    path = write_small(tmp_path / "in.parquet", {"prompt": ["x"] * num_rows, "note": lists})
    plan = plan_for(job_spec(path, tmp_path / "out", input={"path": str(path), "keep": ["note"]}))

    with little_memory(), closing(ShardReader(plan.job, Stores())) as reader:
        rows = reader.read(next(plan.shards()), Spool())

    assert [row.problem and row.problem.code for row in rows] == [None] * most + ["kept_too_large"] * 2


def test_kept_images_do_not_make_a_row_group_that_viewers_cannot_show(tmp_path: Path) -> None:
    """They count like those that are made."""
    pictures = bomb(30, bytes(8 * MEGABYTE), pa.binary())
    path = write_small(tmp_path / "in.parquet", {"prompt": ["x"] * 30, "note": pictures})

    made = make(job_spec(path, tmp_path / "out", input={"path": str(path), "keep": ["note"]}), GreyEngine())

    part = pq.ParquetFile(io.BytesIO(made.parts[0])).metadata
    assert [part.row_group(i).num_rows for i in range(part.num_row_groups)] == [8, 8, 8, 6]
