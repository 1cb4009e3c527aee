"""Facts about pages of the input that cannot be read: the rows that they take fail, and no others."""

import errno
import io
import random
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.inputs.input_file import InputFile
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from schemas.columns.input_columns import map_columns
from schemas.columns.input_schemas import InputSchemas
from schemas.errors import SpecError
from schemas.spec.job_spec import InputSpec, JobSpec
from tests.support.engines import GreyEngine
from tests.support.in_process import (
    drawn_image,
    job_spec,
    make,
    outcomes_by_id,
    plan_for,
    read_output,
    worker_for,
)
from tests.support.in_process import write_rows as write_plain_rows

NUM_ROWS, GROUP_ROWS, PAGE_ROWS = 60, 20, 5
DAMAGED_GROUP = 1
NOISE_BYTES = 30
LOST = [*range(30, 40)]
"""From the damaged page to the end of its row group."""


def write(folder: Path, *damaged: str, checksums: bool = True) -> JobSpec:
    """Three row groups of four pages each; in the second one a page of these columns is noise."""
    rows = [
        {
            "row_id": f"r{row:02d}",
            "task": "img2img" if row % 2 else "text2img",
            "prompt": f"prompt {row}",
            "negative_prompt": f"negative prompt {row}",
            "seed": row,
            "note": f"note {row}",
            # No two are equal.
            "image": {"bytes": drawn_image((16, 16))["bytes"] + str(row).encode(), "path": None},
        }
        for row in range(NUM_ROWS)
    ]
    path = write_plain_rows(folder / "plain.parquet", rows)
    options = {
        "use_dictionary": False,
        "compression": "none",
        "data_page_size": 1,
        "write_batch_size": PAGE_ROWS,
    }
    damaged_path = folder / "in.parquet"
    pq.write_table(
        pq.read_table(path),
        damaged_path,
        row_group_size=GROUP_ROWS,
        write_page_checksum=checksums,
        **options,
    )
    path.unlink()
    data = bytearray(damaged_path.read_bytes())
    for column in damaged:
        start = page_of(damaged_path, column)
        data[start : start + NOISE_BYTES] = random.Random(0).randbytes(NOISE_BYTES)
    damaged_path.write_bytes(data)
    spec = job_spec(damaged_path, folder / "out", batching={"shard_rows": 7})
    return spec.model_copy(update={"input": spec.input.model_copy(update={"keep": ["note"]})})


def page_of(path: Path, column: str) -> int:
    """Where the damaged page of a column begins: behind the last value of the one before."""
    group = pq.read_metadata(path).row_group(DAMAGED_GROUP)
    chunks = map(group.column, range(group.num_columns))
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] == column)
    last = pq.read_table(path)[column][LOST[0] - 1].as_py()
    if column == "seed":
        # Both, for the greatest alone is in the page's header too.
        stored = struct.pack("<qq", last - 1, last)
    else:
        text = last["bytes"] if column == "image" else last.encode()
        stored = struct.pack("<I", len(text)) + text
    if column == "task":
        return int(chunk.data_page_offset)
    return path.read_bytes().index(stored, chunk.data_page_offset) + len(stored)


def expected(lost: list[int]) -> dict[str, str]:
    return {f"r{row:02d}": "corrupt_page" if row in lost else "ok" for row in range(NUM_ROWS)}


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("column", ["prompt", "negative_prompt", "seed", "note", "image"])
def test_rows_behind_a_damaged_page_fail_and_all_others_are_made(
    tmp_path: Path, column: str, checksums: bool
) -> None:
    """To the end of its row group: also in columns that the plan does not read."""
    made = make(write(tmp_path, column, checksums=checksums), GreyEngine())

    assert outcomes_by_id(made) == expected(LOST)
    lost = made.row("r30")
    assert f"column `{column}` of the input is damaged from row 10 of row group 1" in lost["error_message"]
    assert lost["seed"] is not None
    assert lost["prompt"] == (None if column == "prompt" else "prompt 30")
    assert made.row("r40")["note"] == "note 40"


def test_a_flipped_bit_in_a_number_is_damage(tmp_path: Path) -> None:
    """It can be read, as another number: only the page's checksum tells."""
    spec = write(tmp_path)
    path = Path(str(spec.input.path))
    data = bytearray(path.read_bytes())
    values = struct.pack("<qqq", *range(LOST[0], LOST[0] + 3))
    data[data.index(values) + 8] ^= 1
    path.write_bytes(data)

    made = make(spec, GreyEngine())

    assert outcomes_by_id(made) == expected(LOST)


def test_several_damaged_columns_tell_of_the_first_damage(tmp_path: Path) -> None:
    """A row has one reason, and it is in no place twice."""
    made = make(write(tmp_path, "note", "seed", "image"), GreyEngine())

    assert outcomes_by_id(made) == expected(LOST)


def test_what_is_lost_does_not_depend_on_who_reads(tmp_path: Path) -> None:
    """A worker that begins behind the damage makes the same rows as one that has read up to it."""
    spec = write(tmp_path, "negative_prompt")
    in_one_go = make(spec, GreyEngine())
    alone = spec.model_copy(update={"output": spec.output.model_copy(update={"path": str(tmp_path / "b")})})

    plan = replace(plan_for(spec), job=plan_for(alone).job)
    for shard in reversed([*plan.shards()]):
        with worker_for(plan, GreyEngine()) as worker:
            worker.run(shard)

    assert [row | {"image": None} for row in read_output(plan, []).rows] == [
        row | {"image": None} for row in in_one_go.rows
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_no_row_is_lost_or_doubled_around_a_damaged_page(tmp_path: Path, batch_size: int) -> None:
    """However many rows are read together: each column ends at its own damage, and all rows come once."""
    spec = write(tmp_path, "note", "image", "seed")
    path = Path(str(spec.input.path))

    with InputFile(
        path.open("rb"), map_columns(InputSchemas({"x": pq.read_schema(path)}), spec.input)
    ) as file:
        batches = list(file.read_rows(0, batch_size))
        checked = list(file.read_for_checks(batch_size))

    assert [batch.first_row for batch in batches] == [
        sum(other.num_rows for other in batches[:i]) for i in range(len(batches))
    ]
    ids = [row_id for batch in batches for row_id in batch.fields["row_id"].to_pylist()]
    notes = [note for batch in batches for note in batch.keep["note"].to_pylist()]
    assert ids == [f"r{row:02d}" for row in range(NUM_ROWS)]
    assert notes == [None if row in LOST else f"note {row}" for row in range(NUM_ROWS)]
    assert [batch.first_row + row for batch in batches for row in sorted(batch.problems)] == LOST
    assert max(batch.num_rows for batch in [*batches, *checked]) <= batch_size
    seeds = [seed for batch in checked for seed in batch.fields["seed"].to_pylist()]
    assert seeds == [None if row in LOST else row for row in range(NUM_ROWS)]


def test_a_plan_counts_the_rows_that_it_sees_lost(tmp_path: Path) -> None:
    """So that a damaged file is known before anything is paid for, where the damage can be seen cheaply."""
    _, findings = make_plan(make_survey(write(tmp_path, "seed")))

    assert findings.num_bad == {"corrupt_page": len(LOST)}
    assert [bad.row for bad in findings.bad_rows] == LOST
    assert findings.bad_rows[0].row_id == "r30"


@pytest.mark.parametrize("column", ["row_id", "task"])
def test_damage_to_what_places_rows_is_refused_by_the_plan(tmp_path: Path, column: str) -> None:
    """A row without a name, or without a place to go, could have no outcome."""
    with pytest.raises(SpecError, match=f"cannot be read to its end: column `{column}` of the input is dam"):
        make_plan(make_survey(write(tmp_path, column)))


def test_lists_that_are_cut_short_take_their_rows_alone(tmp_path: Path) -> None:
    """Pages of a nested column begin where a row begins; what Arrow reads of it is whole."""
    path = tmp_path / "in.parquet"
    pairs = pa.array([[64, 64]] * NUM_ROWS, pa.list_(pa.int64()))
    pq.write_table(
        pa.table(
            {"row_id": [f"r{i:02d}" for i in range(NUM_ROWS)], "prompt": ["x"] * NUM_ROWS, "pair": pairs}
        ),
        path,
        row_group_size=GROUP_ROWS,
        use_dictionary=False,
        write_page_checksum=True,
    )
    chunk = pq.read_metadata(path).row_group(DAMAGED_GROUP).column(2)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(data)
    spec = job_spec(path, tmp_path / "out")
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"keep": ["pair"]})})

    made = make(spec, GreyEngine())

    assert Counter(outcomes_by_id(made).values()) == {"ok": 40, "corrupt_page": 20}


def test_a_disk_that_fails_is_not_taken_for_a_damaged_file(tmp_path: Path) -> None:
    """Its rows are not lost: they can be made when it is well."""
    path = write_plain_rows(tmp_path / "in.parquet", [{"prompt": "x", "seed": row} for row in range(1000)])

    class Failing(io.FileIO):
        """Reads the footer, and no more."""

        worn = False

        def read(self, size: int | None = -1, /) -> bytes:
            if self.worn:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size) or b""

    source = Failing(path)
    with InputFile(
        source, map_columns(InputSchemas({"x": pq.read_schema(path)}), InputSpec(path="x"))
    ) as file:  # type: ignore[arg-type]
        source.worn = True

        with pytest.raises(OSError, match="Input/output error"):
            list(file.read_for_checks())
