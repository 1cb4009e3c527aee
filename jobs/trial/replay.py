"""`darkroom replay`: one row of an output is generated again, and compared with what the output has of it."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from actors.checkpoints.checkpoint_folders import build_demo_checkpoints
from actors.checkpoints.model_cards import read_card
from actors.parts.part import Record, job_footer
from actors.storage.output import Output, open_output
from actors.worker_process import ENGINE, build_worker
from jobs.estimates.worker_count import cpus_each
from jobs.in_flight import map_in_flight
from jobs.output.job_record import JobRecord, plan_of_record, require_record
from jobs.output.parts import FOOTERS_AT_ONCE, PartFile, list_parts
from jobs.planning.plan import Plan, ShardFinder
from jobs.verification.row_comparison import compare_records, environment_differences, with_images_read
from schemas.columns.output_columns import column_problems
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import DarkroomError, RefusedError, SpecError
from schemas.job import Job, Shard, revisions_of
from schemas.wording.amounts import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """One input row as a part has it."""

    part: PartFile
    schema: pa.Schema
    position: int
    """The row's position in its shard, from 0."""
    records: list[Record]
    """One for each of its images."""
    left_out: frozenset[int]
    """The positions of the shard's rows that were not generated, because they take their worker down."""


def replay_row(
    path: str, row_id: str, console: Console, *, alone: bool = False, engine: str = ENGINE
) -> None:
    """Generate a row again and compare it; DarkroomError if it is not what the output has.

    The rows of its shard are generated with it, because they can change its last bits, unless the job is
    `exact` or it is to be generated `alone`. The output is only read.
    """
    output = open_output(path)
    record = require_record(output)
    stored = find_row(output, record, row_id)
    if stored.position in stored.left_out:
        raise RefusedError(
            f"row {row_id} was left out because it takes its worker down, as it would this process"
        )
    plan = plan_of_record(record, output.path)
    shard = ShardFinder(plan).shard_at(stored.part.index)
    is_alone = alone or record.spec.batching.exact
    others = {*range(shard.num_rows)} - {stored.position}
    # Rows that are skipped are not generated, whatever the reason.
    shard = replace(shard, skip=tuple(sorted(others if is_alone else stored.left_out)))
    num_rows = shard.num_rows - len(shard.skip)
    company = "alone" if num_rows == 1 else f"with the {counted(num_rows, 'row')} of its shard"
    console.print(f"row {row_id} is in {stored.part.uri}; generating it again {company}", soft_wrap=True)
    build_demo_checkpoints(record.spec.models.values())
    job = _job_of(plan, stored)
    before = [with_images_read(each, output) for each in stored.records]
    differences = [*compare_records(before, _generate(job, shard, stored.position, engine))]
    causes = environment_differences(
        stored.schema.metadata or {}, job_footer(job), _revisions_now(record, stored.records)
    )
    for line in [*differences, *causes]:
        console.print(line, soft_wrap=True)
    if differences:
        hint = ""
        if is_alone and not record.spec.batching.exact:
            hint = "; the rows of its shard can change its last bits, so leave out --alone"
        raise DarkroomError(f"row {row_id} is not what {output.path} has of it{hint}")
    console.print(f"equal: {_summary(stored.records)}", soft_wrap=True)


def _summary(records: Sequence[Record]) -> str:
    num_images = sum(record["image"] is not None for record in records)
    if not num_images:
        return f"the row is {records[0]['status']} again"
    return f"{counted(num_images, 'image')}, byte for byte"


def find_row(output: Output, record: JobRecord, row_id: str) -> StoredRow:
    """The row with this id; SpecError if no part has it. Ids are read, part by part, until it is found."""
    parts = list_parts(output, record.shard_names)

    def find(part: PartFile) -> StoredRow | None:
        return _find_in(output, part, row_id)

    for found in map_in_flight(find, parts, at_once=FOOTERS_AT_ONCE):
        if found:
            return found
    missing = record.num_shards - len(parts)
    hint = f"; {counted(missing, 'part')} of {record.num_shards:,} are still missing" if missing else ""
    raise SpecError(f"{output.path} has no row {row_id}{hint}")


def _find_in(output: Output, part: PartFile, row_id: str) -> StoredRow | None:
    with (
        parquet_errors_as(RefusedError, f"{part.uri} is not a darkroom part"),
        output.storage.open(part.uri) as source,
        pq.ParquetFile(source) as file,
    ):
        schema = file.schema_arrow
        for misfit in column_problems(schema):
            raise RefusedError(f"{part.uri} is not a darkroom part: {misfit}")
        keys = file.read(columns=["row_id", "image_index", "error_code"]).to_pydict()
        ids = [str(each) for each in keys["row_id"]]
        if row_id not in ids:
            return None
        first = ids.index(row_id)
        begins = [index == 0 for index in keys["image_index"]]
        codes = [code for code, is_first in zip(keys["error_code"], begins, strict=True) if is_first]
        return StoredRow(
            part=part,
            schema=schema,
            position=sum(begins[:first]),
            records=_records(file, first, first + ids.count(row_id)),
            left_out=frozenset(i for i, code in enumerate(codes) if code == "worker_crash"),
        )


def _records(file: pq.ParquetFile, start: int, stop: int) -> list[Record]:
    """The records `start` to `stop` of a part, of which no other row groups are read."""
    records: list[Record] = []
    first = 0
    for group in range(file.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        if first < stop and start < end:
            offset = max(start - first, 0)
            records += file.read_row_group(group).slice(offset, stop - first - offset).to_pylist()
        first = end
    return records


def _job_of(plan: Plan, stored: StoredRow) -> Job:
    """The recorded job, which writes parts as the stored one is, but without kept columns."""
    schema = stored.schema.remove_metadata()
    for name in plan.job.columns.keep:
        schema = schema.remove(schema.get_field_index(name))
    columns = replace(plan.job.columns, keep={}, id_type=schema.field("row_id").type)
    return replace(plan.job, columns=columns, schema=schema.serialize().to_pybytes())


def _generate(job: Job, shard: Shard, position: int, engine: str) -> list[Record]:
    """The row's records, generated in this process and written to a temporary folder alone."""
    with tempfile.TemporaryDirectory(prefix="darkroom-replay-") as folder:
        output = open_output(folder)
        with build_worker(job, output, num_cpus=cpus_each(job.spec.workers), engine=engine) as worker:
            worker.run(shard)
        with pq.ParquetFile(output.part_uri(shard.name)) as file:
            rows = [*_rows(file.read().to_pylist())]
        # Images that are objects of their own are read before the folder goes.
        return [with_images_read(record, output) for record in rows[position]]


def _rows(records: Sequence[Record]) -> Iterator[list[Record]]:
    """The records of each input row."""
    row: list[Record] = []
    for record in records:
        if record["image_index"] == 0 and row:
            yield row
            row = []
        row.append(record)
    yield row


def _revisions_now(record: JobRecord, records: Sequence[Record]) -> dict[str, str]:
    """The revision that the row's model has now, by the model's name; none for a row that no model takes."""
    name = records[0]["model"]
    return revisions_of({name: read_card(name, record.spec.models[name])}) if name else {}
