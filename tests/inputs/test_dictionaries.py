"""Facts about columns that are read with or without their dictionaries: the cost, and the safety."""

import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.images.spool import Spool
from actors.inputs.column_reader import BATCH_ROWS
from actors.inputs.dictionaries import LOOK_BYTES, Dictionaries, Reading
from actors.inputs.texts import texts_and_problems, with_used_entries
from actors.rows.shard_reader import ShardReader
from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Storage
from actors.storage.stores import Stores
from tests.inputs.test_large_values import little_memory, opened
from tests.support.in_process import job_spec, plan_for

NUM_ROWS = 40_000
MEGABYTE = 1 << 20

TEXTS = [f"a fox, for the {i}th time, in a forest of tall trees" for i in range(NUM_ROWS)]
"""Two megabytes: a writer gives their dictionary up half way."""

pytestmark = pytest.mark.timeout(120)


def reading_of(path: Path, values: pa.Array, **options: Any) -> tuple[Reading, int]:
    """(how a column `text` is read in its whole batches, the bytes of the file that it took to decide)."""
    pq.write_table(pa.table({"text": values}), path, row_group_size=len(values), **options)
    with CountingFile(path) as source:
        dictionaries = Dictionaries(source, pq.read_metadata(path))
        return dictionaries.reading(0, ["text"], BATCH_ROWS), source.num_bytes


class CountingFile(io.FileIO):
    """A file that counts the bytes that are read."""

    num_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size) or b""
        self.num_bytes += len(data)
        return data


@pytest.mark.parametrize(
    "values",
    [
        pa.array(TEXTS),
        pa.array([None] * NUM_ROWS + TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array([[text, "x"] for text in TEXTS]),
        pa.array([[("key", text)] for text in TEXTS], pa.map_(pa.string(), pa.string())),
        pa.array([{"text": text} for text in TEXTS]),
    ],
    ids=lambda values: str(values.type),
)
def test_a_dictionary_that_was_given_up_is_not_read_as_one(tmp_path: Path, values: pa.Array) -> None:
    """pyarrow would put all texts of the row group in it, and copy them for every batch."""
    reading, _ = reading_of(tmp_path / "in.parquet", values)

    assert reading.dictionaries <= {"text.key_value.key"}
    assert reading.num_rows == BATCH_ROWS


def test_a_dictionary_that_is_larger_than_a_batch_is_not_read_as_one(tmp_path: Path) -> None:
    """It would be copied for every batch, though it was never given up."""
    reading, _ = reading_of(tmp_path / "in.parquet", pa.array(TEXTS), dictionary_pagesize_limit=1 << 30)

    assert (reading.dictionaries, reading.num_rows) == (frozenset(), BATCH_ROWS)


def test_few_texts_stay_in_their_dictionary_and_are_not_looked_at(tmp_path: Path) -> None:
    """The footer is enough, so that no request to a store is spent on them."""
    reading, num_bytes = reading_of(tmp_path / "in.parquet", pa.array(TEXTS[:40] * 1_000))

    assert (reading.dictionaries, reading.num_rows) == ({"text"}, BATCH_ROWS)
    assert num_bytes == 0


def test_long_texts_that_many_rows_share_stay_in_their_dictionary(tmp_path: Path) -> None:
    """Though the dictionary is so large that it is looked at."""
    texts = pa.array([f"{i}" * 50_000 for i in range(100, 110)])
    values = pa.DictionaryArray.from_arrays(pa.array([*range(10)] * 4_000, pa.int32()), texts)

    reading, num_bytes = reading_of(tmp_path / "in.parquet", values, dictionary_pagesize_limit=1 << 30)

    assert (reading.dictionaries, reading.num_rows) == ({"text"}, BATCH_ROWS)
    assert num_bytes > 0


def test_one_long_text_makes_small_batches_but_no_dictionary(tmp_path: Path) -> None:
    """All rows may refer to it, so they are as many as fit into memory with it."""
    values = pa.array([*TEXTS[:10], "x" * MEGABYTE, *TEXTS])

    reading, _ = reading_of(tmp_path / "in.parquet", values, write_batch_size=1)

    assert (reading.dictionaries, reading.num_rows) == (frozenset(), 64)


def test_a_text_that_many_rows_share_before_its_dictionary_is_given_up_fits_into_memory(
    tmp_path: Path,
) -> None:
    """Two gigabytes in a file of a megabyte, which looks like one of ordinary texts."""
    path, shared = tmp_path / "in.parquet", pa.array(["x" * MEGABYTE] * 50)
    column = pa.chunked_array([shared] * 40 + [pa.array(TEXTS)])
    pq.write_table(pa.table({"prompt": column}), path, compression="zstd", write_statistics=False)

    with little_memory(), opened(path) as file:
        dictionaries = file.metadata.row_group(0).column(0)
        sizes = [batch.fields["prompt"].nbytes for batch in file.read_rows(0) if not batch.problems]
        num_rows = sum(batch.num_rows for batch in file.read_rows(0))

    assert dictionaries.has_dictionary_page
    assert file.metadata.num_row_groups == 1
    assert path.stat().st_size < 2 * MEGABYTE
    assert num_rows == 2_000 + NUM_ROWS
    assert max(sizes) < MEGABYTE


def test_what_a_file_hides_behind_its_first_page_is_not_unfolded(tmp_path: Path) -> None:
    """A single text may be of a plain page, and the file's dictionary may follow: it is not unfolded."""
    options = {"dictionary_pagesize_limit": 1, "write_batch_size": 1}

    reading, _ = reading_of(tmp_path / "in.parquet", pa.array(TEXTS), **options)

    assert reading.dictionaries == {"text"}


def without_dictionary_offset(path: Path) -> Path:
    """The same file with a footer of old writers, which does not say where the dictionary of a column is."""
    data, chunk = path.read_bytes(), pq.read_metadata(path).row_group(0).column(0)
    size = int.from_bytes(data[-8:-4], "little")
    pages, footer = data[: -8 - size], data[-8 - size : -8]
    # Thrift's compact protocol: 0x26 is an i64 whose field id is greater by 2 than the one before.
    offsets = [b"\x26" + zigzag(offset) for offset in (chunk.data_page_offset, chunk.dictionary_page_offset)]
    before, _, after = footer.partition(b"".join(offsets))
    footer = before + offsets[1] + bytes([after[0] + 0x20]) + after[1:]
    path.write_bytes(pages + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


def zigzag(number: int) -> bytes:
    """A number that is not negative, as Thrift's compact protocol has it."""
    number, groups = number << 1, []
    while True:
        groups.append(number & 0x7F)
        number >>= 7
        if not number:
            return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


@pytest.mark.parametrize("arrow_type", [pa.string(), pa.binary()], ids=str)
def test_a_dictionary_whose_place_the_footer_does_not_tell_is_not_unfolded(
    tmp_path: Path, arrow_type: pa.DataType
) -> None:
    """Texts stay in it, and few images are read together."""
    path, values = tmp_path / "in.parquet", pa.array(["x" * MEGABYTE]).cast(arrow_type)
    numbers = pa.array([0] * 1_000, pa.int32())
    table = pa.table({"text": pa.DictionaryArray.from_arrays(numbers, values)})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, write_statistics=False)
    footer = pq.read_metadata(without_dictionary_offset(path))

    with path.open("rb") as source:
        reading = Dictionaries(source, footer).reading(0, ["text"], BATCH_ROWS)

    assert not footer.row_group(0).column(0).has_dictionary_page
    assert "text" in reading.dictionaries or reading.num_rows <= 64


def test_row_groups_of_both_kinds_follow_each_other(tmp_path: Path) -> None:
    """In texts, and in lists of them; each row has its own, from wherever reading begins."""
    path = tmp_path / "in.parquet"
    prompts = TEXTS + TEXTS[:10] * 1_000 + TEXTS
    table = pa.table({"prompt": prompts, "tags": [[text, "tag"] for text in prompts]})
    bounds = [0, NUM_ROWS, NUM_ROWS + 4_000, NUM_ROWS + 10_000, len(prompts)]
    with pq.ParquetWriter(path, table.schema) as writer:
        for start, stop in pairwise(bounds):
            writer.write_table(table.slice(start, stop - start), row_group_size=NUM_ROWS)

    with opened(path, "tags") as file:
        batches = [*file.read_rows(35_000, batch_size=1_000)]

    assert [batch.first_row for batch in batches] == [
        35_000 + sum(other.num_rows for other in batches[:i]) for i in range(len(batches))
    ]
    read = [text for batch in batches for text in batch.fields["prompt"].to_pylist()]
    tags = [each for batch in batches for each in batch.keep["tags"].to_pylist()]
    assert read == prompts[35_000:]
    assert tags == [[text, "tag"] for text in prompts[35_000:]]


def test_a_batch_judges_the_texts_of_its_own_rows(tmp_path: Path) -> None:
    """Not the whole dictionary, which is that of the row group; too long and damaged ones among them."""
    texts = pa.array([*TEXTS[:1_000], "x" * 100, "y" * 200]).cast(pa.binary())
    texts = pa.concat_arrays([texts, pa.array([b"\xff"])]).view(pa.string())
    column = pa.DictionaryArray.from_arrays(pa.array([7, None, 1_001, 7, 3, 1_002], pa.int32()), texts)

    used = with_used_entries(column)
    values, problems = texts_and_problems(column, "prompt", 150)

    assert len(used.dictionary) == 4
    assert used.slice(0, 5).to_pylist() == column.slice(0, 5).to_pylist()
    assert values.to_pylist() == [TEXTS[7], None, "y" * 200, TEXTS[7], TEXTS[3], "�"]
    assert {row: problem.code for row, problem in problems.items()} == {2: "text_too_long", 5: "invalid_text"}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as pyarrow writes it by default, in one row group."""
    path = tmp_path_factory.mktemp("large") / "in.parquet"
    columns = {"row_id": [f"r{i}" for i in range(NUM_ROWS)], "prompt": TEXTS}
    pq.write_table(pa.table(columns), path)
    return path


class CountingDisks(Stores):
    """The local disk, with a count of the bytes that are read of all files."""

    def __init__(self, temp_dir: str) -> None:
        super().__init__()
        self._temp_dir = temp_dir
        self.opened: list[CountingFile] = []

    def of(self, uri: str) -> Storage:
        opened = self.opened

        class Disk(LocalStorage):
            def open(self, uri: str) -> BinaryIO:
                opened.append(CountingFile(uri))
                return opened[-1]  # type: ignore[return-value]

        return Disk(temp_dir=self._temp_dir)

    @property
    def num_bytes(self) -> int:
        """The bytes that were read."""
        return sum(file.num_bytes for file in self.opened)


def read_shards(path: Path, stores: Stores, which: Sequence[int], beats: list[None]) -> Iterator[str]:
    """The ids of these shards of 1,000 rows, read one after the other."""
    plan = plan_for(job_spec(path, path.parent / "out", batching={"shard_rows": 1_000}))
    shards = [*plan.shards()]
    with closing(ShardReader(plan.job, stores, lambda: beats.append(None))) as reader:
        for number in which:
            yield from (str(row.row_id) for row in reader.read(shards[number], Spool()))


def test_neighbouring_shards_are_read_from_one_pass_over_their_row_group(large: Path) -> None:
    """Ten of them, and then a few more: no byte of a column is read again, but for its dictionary."""
    stores = CountingDisks(str(large.parent))

    ids = [*read_shards(large, stores, [*range(25, 35), 36, 39], [])]

    assert ids == [
        f"r{i}" for shard in (*range(25, 35), 36, 39) for i in range(shard * 1_000, shard * 1_000 + 1_000)
    ]
    assert stores.num_bytes < 1.2 * large.stat().st_size + 2 * LOOK_BYTES


def test_a_read_beats_on_its_way_to_the_shards_rows(large: Path) -> None:
    """So that a long way does not look like a worker that hangs."""
    beats: list[None] = []

    ids = [*read_shards(large, Stores(), [39], beats)]

    assert ids[0] == "r39000"
    assert len(beats) >= NUM_ROWS // BATCH_ROWS
