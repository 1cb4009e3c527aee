"""How long a worker takes to read shards of a large row group, and how much memory.

Each file has one row group, as pyarrow writes it by default. The rows are those of common jobs: unique
prompts, prompts with a negative prompt that many rows share, and prompts with captions that are kept. A
reader in a process of its own reads ten shards from some row on. It takes turns with a reader of the same
file written without dictionaries; the figures are medians.

    python -m benchmarks.reading                   # 1,000,000 rows
    python -m benchmarks.reading --rows 100000     # fewer rows
"""

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

from actors.images.spool import Spool
from actors.rows.shard_reader import ShardReader
from actors.storage.stores import Stores
from benchmarks.race import surroundings
from jobs.survey.survey import make_survey
from schemas.job import Job, Shard
from schemas.output_layout import shard_name
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import size_text

ROWS = 256
"""Rows of a shard."""
NUM_SHARDS = 10
"""Neighbouring shards that a reader reads."""
PLACES = (0.0, 0.5, 0.99)
"""The first row that is read, as a share of all rows."""
WORDS = (
    "fox",
    "castle",
    "river",
    "light",
    "painting",
    "detailed",
    "portrait",
    "of",
    "a",
    "the",
    "in",
    "style",
)


def texts(num: int, num_words: int) -> list[str]:
    """Texts no two of which are equal."""
    dice = random.Random(0)
    return [f"{i} {' '.join(dice.choices(WORDS, k=num_words))}" for i in range(num)]


def prompts(num: int) -> dict[str, pa.Array]:
    """Unique prompts of about 120 bytes."""
    return {"row_id": pa.array([f"row-{i:09d}" for i in range(num)]), "prompt": pa.array(texts(num, 18))}


def shared_negatives(num: int) -> dict[str, pa.Array]:
    """Prompts, and one of 20 negative prompts of a kilobyte."""
    negatives = pa.array(texts(20, 180))
    numbers = pa.array([i % 20 for i in range(num)], pa.int32())
    return prompts(num) | {"negative_prompt": pa.DictionaryArray.from_arrays(numbers, negatives)}


def captions(num: int) -> dict[str, pa.Array]:
    """Prompts, and two unique captions in a list."""
    offsets = pa.array(range(0, 2 * num + 1, 2), pa.int32())
    return prompts(num) | {"captions": pa.ListArray.from_arrays(offsets, pa.array(texts(2 * num, 12)))}


FILES: Mapping[str, Callable[[int], dict[str, pa.Array]]] = {
    "unique prompts": prompts,
    "shared negative prompts": shared_negatives,
    "lists of captions": captions,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of one read."""

    first_s: float
    """Seconds until the first shard's rows are there."""
    all_s: float
    peak_bytes: int
    """The most memory of the reader's process."""


def read(job: Job, shards: list[Shard]) -> Measured:
    """Read the shards one after the other, as a worker does."""
    begun = time.perf_counter()
    first_s = 0.0
    with closing(ShardReader(job, Stores())) as reader:
        for shard in shards:
            assert len(reader.read(shard, Spool())) == shard.num_rows
            first_s = first_s or time.perf_counter() - begun
    # proc(5); getrusage(2) has the parent's peak too.
    peak_kb = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    return Measured(first_s=first_s, all_s=time.perf_counter() - begun, peak_bytes=int(peak_kb) << 10)


def job_over(path: Path, keep: list[str]) -> tuple[Job, str]:
    """(job, fingerprint of its file)."""
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "name": "reading",
            "input": {"path": str(path), "keep": keep},
            "models": {"sd": {"checkpoint": "demo:sd"}},
            "routes": {"text2img": {"model": "sd"}},
            "output": {"path": str(path.parent / "out")},
        }
    )
    survey = make_survey(spec)
    return survey.job, survey.files[0].stored.etag


def shards_from(path: Path, etag: str, first_row: int, num_rows: int) -> Iterator[Shard]:
    """Neighbouring shards from the one with this row on."""
    first = min(first_row // ROWS, num_rows // ROWS - NUM_SHARDS)
    for index in range(first, first + NUM_SHARDS):
        yield Shard(
            index=index,
            name=shard_name(index, num_rows // ROWS),
            uri=str(path),
            etag=etag,
            model="sd",
            start=index * ROWS,
            stop=(index + 1) * ROWS,
        )


def measure(path: Path, keep: list[str], first_row: int) -> Measured:
    """The figures of a read from this row on, in a process of its own."""
    job, etag = job_over(path, keep)
    shards = [*shards_from(path, etag, first_row, pq.read_metadata(path).num_rows)]
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(read, (job, shards))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each file (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="reads of each place (%(default)s)")
    arguments = parser.parse_args()
    print(surroundings())
    print(
        "\n| file | from row | first shard, s | without dictionaries | ratio | ten shards, s | peak memory |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, columns_of in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            table = pa.table(columns_of(arguments.rows))
            keep = ["captions"] if "captions" in table.column_names else []
            paths = {use: Path(folder) / f"{use}.parquet" for use in (True, False)}
            for use, path in paths.items():
                pq.write_table(table, path, row_group_size=arguments.rows, use_dictionary=use)
            del table
            for place in PLACES:
                row = int(place * arguments.rows)
                reads: dict[bool, list[Measured]] = {True: [], False: []}
                for _ in range(arguments.rounds):
                    for use, path in paths.items():
                        reads[use].append(measure(path, keep, row))
                first, plain = (median(each.first_s for each in reads[use]) for use in (True, False))
                memory = max(each.peak_bytes for each in reads[True])
                print(
                    f"| {name} | {row:,} | {first:.2f} | {plain:.2f} | {first / plain:.2f} "
                    f"| {median(each.all_s for each in reads[True]):.2f} | {size_text(memory)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
