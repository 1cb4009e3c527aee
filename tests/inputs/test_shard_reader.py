"""Facts about reading a shard: each row has its own values, in whatever order shards are read."""

import errno
import io
import random
import tracemalloc
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.images.spool import Encoded, Spool, encoded_bytes
from actors.inputs.column_reader import BATCH_ROWS
from actors.inputs.input_file import InputFile
from actors.rows.routed_rows import RoutedRows
from actors.rows.routing import Router
from actors.rows.row import Row, derived_seed
from actors.rows.shard_reader import ShardReader
from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Storage, StoredObject
from actors.storage.stores import Stores, open_storage
from jobs.planning.plan import Plan
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import RefusedError
from schemas.job import Shard
from schemas.spec.job_spec import JobSpec
from tests.support.in_process import Record, job_spec, plan_for, write_rows

NUM_ROWS = 130
"""Two batches of 64 rows, and two rows more."""
MODELS = {name: {"checkpoint": "demo:sd"} for name in ("sd", "other")}
BAD = (3, 64, 127)


def record(i: int) -> Record:
    """A row that differs from its neighbours in every value; some values are null, and some 0."""
    picture = {"bytes": f"picture {i}".encode(), "path": f"{i}.png"}
    return {
        "prompt": None if i in BAD else f"prompt {i}",
        "negative_prompt": f"not {i}" if i % 4 else None,
        "task": ("text2img", "img2img", None, "")[i % 4],
        "model": ("sd", "other", None, "", "other")[i % 5],
        "seed": i - 7 if i >= 7 and i % 6 else None,
        "num_images_per_prompt": (1, 2, 3, None)[i % 7 % 4],
        "guidance_scale": (None, 0.0, i / 10)[i % 3],
        "scheduler": (None, "DDIMScheduler", None, "EulerDiscreteScheduler")[i // 3 % 4],
        "image": picture if i % 4 == 1 else None,
        "mask_image": {"bytes": None, "path": f"mask {i}.png"} if i % 2 else None,
        "note": {"number": i, "texts": [str(i)] * (i % 3)},
    }


SEEDS = [5_557_450_373_012_977, 2_300_589_495_497_852, 7_885_913_748_154_343, 1_545_853_209_769_991]
RECORDS = [record(i) for i in range(NUM_ROWS)]


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    """A job over one file of 130 rows without ids, in row groups of 50."""
    table = pa.Table.from_pylist(
        RECORDS,
        schema=pa.schema(
            [
                *((name, pa.string()) for name in ("prompt", "negative_prompt", "task", "model")),
                *((name, pa.int64()) for name in ("seed", "num_images_per_prompt")),
                ("guidance_scale", pa.float64()),
                ("scheduler", pa.string()),
                *((name, IMAGE_TYPE) for name in ("image", "mask_image")),
                ("note", pa.struct([("number", pa.int64()), ("texts", pa.list_(pa.string()))])),
            ]
        ),
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=50)
    path = tmp_path / "in.parquet"
    return job_spec(
        path,
        tmp_path / "out",
        input={"path": str(path), "keep": ["note"]},
        models=MODELS,
        batching={"shard_rows": 33},
        seed=5,
    )


def expected(i: int, index: int) -> Record:
    """What the reader must say of row `i`, which is row `index` of its shard."""
    row = record(i)
    bad = i in BAD
    return {
        "index": index,
        "row_id": f"in.parquet#{i}",
        "route": (row["task"] or "text2img", row["model"] or "sd"),
        "texts": (row["prompt"], row["negative_prompt"], None),
        "image": row["image"] and (row["image"]["bytes"], row["image"]["path"]),
        "mask_image": row["mask_image"] and (None, row["mask_image"]["path"]),
        "seed": derived_seed(5, f"in.parquet#{i}") if row["seed"] is None else row["seed"],
        "num_images": 1 if bad else row["num_images_per_prompt"] or 1,
        "guidance_scale": None if bad else 7.5 if row["guidance_scale"] is None else row["guidance_scale"],
        "scheduler": None if bad else row["scheduler"] or "PNDMScheduler",
        "note": row["note"],
        "problem": "missing_prompt" if bad else None,
    }


def seen(row: Row) -> Record:
    """A row as `expected` describes it."""
    images = {
        name: (source.data and encoded_bytes(source.data), source.uri) for name, source in row.images.items()
    }
    return {
        "index": row.index,
        "row_id": row.row_id,
        "route": (row.route.name, row.route.model),
        "texts": tuple(row.texts[name] for name in ("prompt", "negative_prompt", "prompt_2")),
        "image": images.get("image"),
        "mask_image": images.get("mask_image"),
        "seed": row.seed,
        "num_images": row.num_images,
        "guidance_scale": row.parameters.get("guidance_scale"),
        "scheduler": row.parameters.get("scheduler"),
        "note": row.keep["note"][0].as_py(),
        "problem": row.problem and row.problem.code,
    }


def read_all(plan: Plan, shards: list[Shard], stores: Stores | None = None) -> Mapping[str, list[Row]]:
    """The rows of these shards by the shard's name, read one after the other by one reader."""
    with closing(ShardReader(plan.job, stores or Stores())) as reader:
        return {shard.name: reader.read(shard, Spool()) for shard in shards}


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_each_row_of_a_shard_has_its_own_values(spec: JobSpec, order: str) -> None:
    """Over batches, row groups, models and routes: ids, seeds, images, kept columns and problems."""
    plan = plan_for(spec)
    shards = list(plan.shards())
    numbers = {
        model: [i for i in range(NUM_ROWS) if (RECORDS[i]["model"] or "sd") == model] for model in MODELS
    }
    ordered = {"forward": shards, "backward": shards[::-1], "shuffled": random.Random(0).sample(shards, 5)}

    read = read_all(plan, ordered[order])

    assert len(shards) == 5
    for shard in shards:
        rows = numbers[shard.model][shard.start : shard.stop]
        assert [seen(row) for row in read[shard.name]] == [expected(i, index) for index, i in enumerate(rows)]


def test_one_thread_reads_at_a_time(spec: JobSpec, tmp_path: Path) -> None:
    """The others wait: a file is read forward, and has one place."""
    second_began = Event()
    overlaps: list[bool] = []

    class Disk(LocalStorage):
        def stat(self, uri: str) -> StoredObject | None:
            if not overlaps:
                overlaps.append(False)
                futures.append(threads.submit(reader.read, second, Spool()))
                overlaps[0] = second_began.wait(timeout=0.3)
            second_began.set()
            return super().stat(uri)

    class Disks(Stores):
        def of(self, uri: str) -> Storage:
            return Disk(temp_dir=str(tmp_path))

    plan = plan_for(spec)
    first, second, *_ = plan.shards()
    futures: list[Future[list[Row]]] = []

    with closing(ShardReader(plan.job, Disks())) as reader, ThreadPoolExecutor(1) as threads:
        rows = [*reader.read(first, Spool()), *futures[0].result(timeout=20)]

    assert overlaps == [False]
    assert [row.row_id for row in rows] == [
        row.row_id for shard_rows in read_all(plan, [first, second]).values() for row in shard_rows
    ]


def test_rows_are_found_behind_the_first_rows_that_are_routed_together(tmp_path: Path) -> None:
    """Models interleave over that border too."""
    num_rows = BATCH_ROWS + 20
    models = [("sd", "other")[i % 3 == 0] for i in range(num_rows)]
    path = write_rows(
        tmp_path / "in.parquet", [{"prompt": f"p{i}", "model": model} for i, model in enumerate(models)]
    )
    plan = plan_for(job_spec(path, tmp_path / "out", models=MODELS, batching={"shard_rows": 5_000}))
    last = {shard.model: shard for shard in plan.shards()}

    read = read_all(plan, [*last.values()])

    for model, shard in last.items():
        numbers = [i for i in range(num_rows) if models[i] == model][shard.start : shard.stop]
        assert [row.texts["prompt"] for row in read[shard.name]] == [f"p{i}" for i in numbers]
        assert [row.row_id for row in read[shard.name]] == [f"in.parquet#{i}" for i in numbers]


@pytest.mark.parametrize(("group_rows", "in_dictionary"), [(70_000, True), (5_000, False)])
def test_a_models_rows_are_found_anywhere_in_a_file_without_memory_for_each(
    tmp_path: Path, group_rows: int, in_dictionary: bool
) -> None:
    """In any order of asking, over blocks of one model and of several, in row groups of other borders."""
    num_rows = 200_000
    models = np.array(["sd" if 50_000 <= i < 90_000 or i % 3 else "other" for i in range(num_rows)])
    path = tmp_path / "in.parquet"
    table = pa.table({"prompt": ["x"] * num_rows, "model": models})
    pq.write_table(table, path, row_group_size=group_rows, use_dictionary=in_dictionary)
    job = plan_for(job_spec(path, tmp_path / "out", models=MODELS)).job
    dice = random.Random(0)
    tracemalloc.start()

    with InputFile(path.open("rb"), job.columns) as file:
        before, _ = tracemalloc.get_traced_memory()
        routed = RoutedRows(file, Router(job.spec, job.models))
        after, _ = tracemalloc.get_traced_memory()
        for _ in range(60):
            model = dice.choice([*MODELS])
            start = dice.randrange(num_rows // 2)
            stop = start + dice.choice([0, 1, 100, 40_000, 150_000])
            numbers = np.flatnonzero(models == model)[start:stop]
            assert np.array_equal(routed.numbers(model, start, stop), numbers)
        absent = routed.numbers("third", 0, 10)

    tracemalloc.stop()
    assert len(absent) == 0
    assert after - before < num_rows // 4


def test_reading_goes_on_after_a_disk_has_failed(tmp_path: Path) -> None:
    """With the shard that failed, and in the file that is open."""
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["x"] * 3 * BATCH_ROWS}), path, row_group_size=BATCH_ROWS)
    plan = plan_for(job_spec(path, tmp_path / "out", batching={"shard_rows": 10_000}))
    failing: list[OSError] = []

    class File(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if failing:
                raise failing.pop()
            return super().read(size) or b""

    class Disk(LocalStorage):
        def open(self, uri: str) -> BinaryIO:
            return File(uri)  # type: ignore[return-value]

    class Disks(Stores):
        def of(self, uri: str) -> Storage:
            return Disk(temp_dir=str(tmp_path))

    shards = [*plan.shards()]
    with closing(ShardReader(plan.job, Disks())) as reader:
        rows = reader.read(shards[0], Spool())
        failing.append(OSError(errno.EIO, "Input/output error"))
        with pytest.raises(OSError, match="Input/output error"):
            reader.read(shards[1], Spool())
        for shard in shards[1:]:
            rows += reader.read(shard, Spool())

    assert [row.row_id for row in rows] == [f"in.parquet#{i}" for i in range(3 * BATCH_ROWS)]


def test_a_derived_seed_never_changes() -> None:
    """Of one job and id it is the same in every version, and a number that JavaScript can have."""
    seeds = [derived_seed(0, "a"), derived_seed(1, "a"), derived_seed(0, "b"), derived_seed(0, 7)]

    assert seeds == SEEDS
    assert all(derived_seed(0, i) < 2**53 for i in range(100))


def test_ids_of_two_files_differ_and_each_file_is_closed(tmp_path: Path) -> None:
    """Files of one name in two folders, read in turns: what was opened last is open, and then nothing is."""
    for day in ("1/x", "2/x"):
        (tmp_path / "rows" / day).mkdir(parents=True)
        write_rows(tmp_path / "rows" / day / "f.parquet", [{"prompt": f"{day} {i}"} for i in range(65)])
    plan = plan_for(job_spec(tmp_path / "rows", tmp_path / "out", batching={"shard_rows": 40}))
    opened: list[BinaryIO] = []

    class Disk(LocalStorage):
        def open(self, uri: str) -> BinaryIO:
            opened.append(super().open(uri))
            return opened[-1]

    class Disks(Stores):
        def of(self, uri: str) -> Storage:
            return Disk(temp_dir=str(tmp_path))

    shards = list(plan.shards())
    in_turns = [shards[i] for i in (0, 2, 1, 3)]
    read = read_all(plan, in_turns, Disks())

    ids = [row.row_id for shard in shards for row in read[shard.name]]
    prompts = [row.texts["prompt"] for shard in shards for row in read[shard.name]]
    assert ids == [f"{day}/x/f.parquet#{i}" for day in "12" for i in range(65)]
    assert prompts == [f"{day}/x {i}" for day in "12" for i in range(65)]
    assert len(opened) == 4
    assert all(file.closed for file in opened)


def fox_or_cat(animal: str) -> bytes:
    """A file of 130 rows, the last of which has an image; its size does not depend on the animal."""
    images = pa.array([None] * 129 + [{"bytes": b"picture", "path": None}], IMAGE_TYPE)
    file = io.BytesIO()
    table = pa.table({"prompt": [f"a {animal} {i}" for i in range(130)], "image": images})
    pq.write_table(table, file, compression="none")
    return file.getvalue()


@pytest.mark.parametrize(
    ("when", "in_bucket"), [("before", False), ("between", False), ("during", False), ("between", True)]
)
def test_an_input_of_the_same_name_and_size_is_another_input(
    tmp_path: Path, request: pytest.FixtureRequest, when: str, in_bucket: bool
) -> None:
    """Its store's fingerprint of it decides, on disk and in a bucket: before each read and after it."""
    if in_bucket:
        request.getfixturevalue("s3_env")
    folder = f"s3://inp/{tmp_path.name}" if in_bucket else str(tmp_path / "rows")
    uri, storage = f"{folder}/in.parquet", open_storage(folder)
    storage.replace(uri, fox_or_cat("fox"))
    plan = plan_for(job_spec(Path("x"), tmp_path / "out", input={"path": uri}, batching={"shard_rows": 65}))
    first, second = plan.shards()

    def change() -> None:
        storage.replace(uri, fox_or_cat("cat"))

    class ChangingSpool(Spool):
        def add(self, data: bytes) -> Encoded:
            change()
            return super().add(data)

    with closing(ShardReader(plan.job, Stores())) as reader:
        if when != "before":
            reader.read(first, Spool())
        if when != "during":
            change()
        with pytest.raises(RefusedError, match=r"in\.parquet changed after this job was planned"):
            reader.read(second, ChangingSpool() if when == "during" else Spool())

    assert len(fox_or_cat("fox")) == len(fox_or_cat("cat"))


def test_a_shard_of_rows_that_its_file_does_not_have_is_refused(spec: JobSpec) -> None:
    """It is never made shorter than it was planned."""
    plan = plan_for(spec)
    last = [shard for shard in plan.shards() if shard.model == "sd"][-1]

    with (
        closing(ShardReader(plan.job, Stores())) as reader,
        pytest.raises(RefusedError, match="changed after this job was planned"),
    ):
        reader.read(replace(last, stop=last.stop + 1), Spool())
