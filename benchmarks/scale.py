"""What a driver needs for very many parts and very many ids: time, peak memory, bytes from the store.

The parts are those of a store that is simulated in the driver's process: it answers the driver's requests to
S3, each with a real listing or with bytes of one real part. What a network costs is not in these figures. The
ids are in real Parquet files, written to the folder for temporary files (20 bytes an id).

    python -m benchmarks.scale                                     # up to 1,000,000 parts and 20,000,000 ids
    python -m benchmarks.scale --parts 10000 --ids 1000000         # only so many
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from actors.inputs.input_file import InputFile
from actors.process import peak_rss_bytes
from actors.storage.output import Output, open_output
from actors.storage.s3 import S3Storage
from actors.storage.stores import Stores
from benchmarks.race import surroundings
from jobs import retry, run
from jobs.output.job_record import claim, require_record
from jobs.output.parts import list_parts, output_totals
from jobs.output.resumption import plan_of
from jobs.output.tally import Tally
from jobs.planning.plan import Plan, make_plan
from jobs.planning.row_ids import id_keys
from jobs.planning.row_keys import RowKeys
from jobs.planning.row_scan import Findings
from jobs.reports.finish import finish
from jobs.reports.summary import reported_totals
from jobs.survey.survey import Survey, SurveyedFile, make_survey
from schemas.columns.input_columns import ColumnMap
from schemas.output_layout import PARTS_FOLDER, ShardNames, shard_name
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import size_text

ROWS = 256
"""Rows of a part."""
PAGE = 1_000
"""Objects on a page of a listing, as S3 has them."""
IDS_PER_FILE = 2_000_000
OUTPUT = "s3://bucket/out"


class StandInStore(S3Storage):
    """S3 whose answers are made here: an output of very many parts, which all have the same bytes."""

    def __init__(self, num_parts: int, part: bytes) -> None:
        super().__init__(timeout_s=1, deadline_s=1)
        self._num_parts = num_parts
        self._part = part
        self._others: dict[str, bytes] = {}
        """Objects that are no parts, by key."""
        self.num_requests = 0
        self.bytes_sent = 0

    def _call(
        self,
        operation: str,
        uri: str,
        arguments: Mapping[str, Any],
        *,
        timeout_s: float | None = None,
        max_bytes: int | None = None,
    ) -> dict[str, Any]:
        self.num_requests += 1
        if operation == "list_objects_v2":
            return self._page(arguments["Prefix"], int(arguments.get("ContinuationToken", 0)))
        key = arguments["Key"]
        if operation == "put_object":
            self._others[key] = bytes(arguments["Body"])
            return {}
        content = self._part if key.startswith(f"out/{PARTS_FOLDER}/") else self._others.get(key)
        if content is None:
            raise FileNotFoundError(uri)
        if operation == "head_object":
            return {"ContentLength": len(content), "ETag": f'"{"e" * 32}"'}
        body = content[_range_of(arguments.get("Range", "bytes=0-"), len(content))]
        self.bytes_sent += len(body)
        return {"Body": body, "ContentLength": len(body), "ContentRange": f"bytes /{len(content)}"}

    def _page(self, prefix: str, start: int) -> dict[str, Any]:
        stop = min(start + PAGE, self._num_parts)
        entries = [
            {
                "Key": f"{prefix}{shard_name(index, self._num_parts)}.parquet",
                "Size": len(self._part),
                "ETag": f'"{index:032x}"',
                "LastModified": datetime.now(UTC),
            }
            for index in range(start, stop)
        ]
        return {
            "Contents": entries,
            "IsTruncated": stop < self._num_parts,
            "NextContinuationToken": str(stop),
        }


def _range_of(header: str, size: int) -> slice:
    """The bytes that a header such as `bytes=0-9` or `bytes=-10` names."""
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first:
        return slice(max(0, size - int(last)), size)
    return slice(int(first), int(last) + 1 if last else size)


def spec_for(input_path: str, output_path: str) -> JobSpec:
    """A job of one model with random weights."""
    return JobSpec.model_validate(
        {
            "version": 1,
            "name": "scale",
            "input": {"path": input_path},
            "models": {"sd": {"checkpoint": "demo:sd"}},
            "routes": {"text2img": {"model": "sd"}},
            "default_route": "text2img",
            "output": {"path": output_path},
            "batching": {"shard_rows": ROWS},
        }
    )


def make_part(folder: str) -> None:
    """Write one real part of ROWS rows."""
    # Imported here because they import torch, whose memory would count for the driver.
    from actors.worker import Worker
    from benchmarks.contenders.constant_engine import make_engine

    rows = pa.table({"prompt": [f"a red fox {i}" for i in range(ROWS)]})
    pq.write_table(rows, f"{folder}/rows.parquet")
    spec = spec_for(f"{folder}/rows.parquet", f"{folder}/out")
    plan, _ = make_plan(make_survey(spec))
    output = open_output(spec.output.path)
    with Worker(
        plan.job, engine=make_engine(plan.job, 1), stores=Stores(), output=output, num_threads=1
    ) as worker:
        worker.run(next(plan.shards()))


@contextmanager
def step(name: str, store: StandInStore) -> Iterator[None]:
    """Print a line with what the block took."""
    begun, requests, sent = time.monotonic(), store.num_requests, store.bytes_sent
    yield
    seconds, requests = time.monotonic() - begun, store.num_requests - requests
    print(
        f"| {store._num_parts:,} | {name} | {seconds:,.1f} s | {requests:,} "
        f"| {size_text(store.bytes_sent - sent)} | {size_text(peak_rss_bytes())} |",
        flush=True,
    )


def measure_parts(folder: str, num_parts: int) -> None:
    """Print the lines of an output of that many parts."""
    (part,) = Path(folder, "out", PARTS_FOLDER).iterdir()
    store = StandInStore(num_parts, part.read_bytes())
    output = Output(store, OUTPUT)
    survey, plan = planned(folder, num_parts)
    with step("record the job", store):
        claim(output, plan, Findings(counts=(), bad_rows=(), num_bad={}))
    with step("begin a run", store):
        record = require_record(output)
        plan = plan_of(record, survey, OUTPUT)
        assert sum(list_parts(output, ShardNames([num_parts])).done()) == num_parts
        run._dispatcher(plan, bytearray(num_parts))
    with step("status, unfinished", store):
        totals = output_totals(output, ShardNames([num_parts]))
        assert totals.ok == num_parts * ROWS
    with step("begin a retry", store):
        parts = list_parts(output, ShardNames([num_parts]))
        chosen = retry._shards_to_retry(output, plan, parts, (), Console())
        assert not any(chosen)
    with step("finish", store):
        finish(output, record, Tally(rows_total=plan.num_rows, rows_before=0).figures())
    with step("status, finished", store):
        assert (
            reported_totals(output, require_record(output), list_parts(output, ShardNames([num_parts])))
            == totals
        )


def planned(folder: str, num_parts: int) -> tuple[Survey, Plan]:
    """The survey and the plan of a job with the rows of that many parts in one file."""
    surveyed = make_survey(spec_for(f"{folder}/rows.parquet", OUTPUT))
    plan, _ = make_plan(surveyed)
    num_rows = num_parts * ROWS
    files = (replace(surveyed.files[0], num_rows=num_rows),)
    planned_files = (replace(plan.files[0], num_rows=num_rows, rows_by_model={"sd": num_rows}),)
    return replace(surveyed, files=files), replace(plan, files=planned_files)


def write_ids(folder: str, num_ids: int) -> None:
    """Write files with that many ids, 16 hexadecimal digits each. The last id is the first one's again."""
    for start in range(0, num_ids, IDS_PER_FILE):
        stop = min(start + IDS_PER_FILE, num_ids)
        numbers = np.arange(start, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        ids = [f"{number:016x}" for number in numbers.tolist()]
        if stop == num_ids:
            ids[-1] = f"{0:016x}"
        table = pa.table({"row_id": ids})
        pq.write_table(table, f"{folder}/{start:012}.parquet", row_group_size=100_000, use_dictionary=False)


def measure_ids(folder: str, num_ids: int) -> None:
    """Print the line of an input of that many ids."""
    stores, columns = (
        Stores(),
        ColumnMap(fields={"row_id": "row_id"}, recognised={}, keep={}, id_type=pa.string()),
    )
    paths = sorted(map(str, Path(folder).glob("*.parquet")))[: -(-num_ids // IDS_PER_FILE)]
    stored = [stores.of(path).stat(path) for path in paths]
    files = [
        SurveyedFile(stored=file, num_rows=pq.read_metadata(file.uri).num_rows) for file in stored if file
    ]
    begun = time.monotonic()
    with RowKeys(num_ids) as row_keys:
        for file in files:
            with InputFile(stores.of(file.stored.uri).open(file.stored.uri), columns) as opened:
                for keys in id_keys(opened):
                    row_keys.add(keys)
        read = time.monotonic()
        num_files = len(row_keys._files)
        repeated_keys, num_repetitions = row_keys.repeated(10)
    assert not row_keys.problem
    assert len(repeated_keys) == num_repetitions <= 1
    ended = time.monotonic()
    print(
        f"| {num_ids:,} | {num_files or 'in memory'} | {read - begun:,.1f} s | {ended - read:,.1f} s "
        f"| {size_text(peak_rss_bytes())} |",
        flush=True,
    )


def apart(function: Callable[..., None], *arguments: Any) -> None:
    """Call the function in a process of its own, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(function, *arguments).result()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--parts", type=int, default=1_000_000, help="the most parts (%(default)s)")
    parser.add_argument("--ids", type=int, default=20_000_000, help="the most ids (%(default)s)")
    arguments = parser.parse_args()
    print(surroundings())
    with tempfile.TemporaryDirectory() as folder:
        apart(make_part, folder)
        print("\n| parts | what the driver does | time | requests | bytes of objects | peak memory |")
        print("|---|---|---|---|---|---|")
        for num_parts in (10_000, 100_000, 1_000_000):
            if num_parts <= arguments.parts:
                apart(measure_parts, folder, num_parts)
    with tempfile.TemporaryDirectory() as folder:
        apart(write_ids, folder, arguments.ids)
        print("\n| ids | files | read | compared | peak memory |")
        print("|---|---|---|---|---|")
        for share in (20, 4, 2, 1):
            apart(measure_ids, folder, arguments.ids // share)


if __name__ == "__main__":
    main()
