"""`darkroom verify`: it reads an output again and checks that the output keeps the row contract."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from actors.inputs.input_file import InputFile
from actors.rows.routing import Router
from actors.rows.row import derived_row_id
from actors.storage.objects import Storage
from actors.storage.output import Output, open_output
from actors.storage.stores import Stores
from jobs.in_flight import map_in_flight
from jobs.output.content_hashes import has_hash
from jobs.output.job_record import JobRecord, plan_of_record, require_record
from jobs.output.parts import FOOTERS_AT_ONCE, Parts, list_parts
from jobs.output.stored_images import read_image
from jobs.planning.plan import Plan
from jobs.verification.part_check import PartCheck, PartVerdict
from schemas.columns.folder_columns import folder_columns
from schemas.columns.output_columns import OPTIONAL_PART_COLUMNS, PART_COLUMNS, STATUSES, column_problems
from schemas.errors import DarkroomError, RefusedError, RowError
from schemas.job import PlannedFile, Shard
from schemas.output_layout import JOB_RECORD
from schemas.wording.amounts import counted

PARTS_AT_ONCE = 4
"""Parts that are checked at the same time."""
MAX_SHOWN = 20
"""The most faults that the message lists."""


_ExpectedShard = tuple[Shard, list[Any]]
"""A shard and the row ids that its part must have, in order."""


def verify_output(path: str, console: Console) -> None:
    """Compare every part with the input; DarkroomError where anything is wrong or missing."""
    output = open_output(path)
    record = require_record(output)
    plan = plan_of_record(record, output.path)
    parts = list_parts(output, record.shard_names)
    stores = Stores(plan.job.spec.errors.storage_deadline_s)
    verifier = _Verifier(output, record, plan, parts)
    rows: Counter[str] = Counter()
    images = withheld = 0
    faults = _input_faults(plan, stores)
    num_faults = len(faults)
    expected = () if faults else _expected_shards(plan, stores)
    for verdict in map_in_flight(verifier.check, expected, at_once=PARTS_AT_ONCE):
        rows += verdict.rows
        images += verdict.images
        withheld += verdict.withheld
        num_faults += len(verdict.faults)
        faults += verdict.faults[: max(0, MAX_SHOWN - len(faults))]
    counts = ", ".join(f"{rows[status]:,} {status}" for status in STATUSES)
    num_outcomes = sum(rows.values())
    console.print(
        f"{num_outcomes:,} of {counted(plan.num_rows, 'input row')} {'has' if num_outcomes == 1 else 'have'} "
        f"exactly one outcome ({counts}); {counted(images, 'image')} "
        + ("decodes and matches its checksum" if images == 1 else "decode and match their checksums")
        + (f", {withheld:,} {'was' if withheld == 1 else 'were'} flagged and dropped" if withheld else "")
        + f"; {len(parts):,} of {counted(plan.num_shards, 'part')}",
        highlight=False,
        soft_wrap=True,
    )
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:MAX_SHOWN])
        raise DarkroomError(
            f"{output.path} does not keep the row contract ({counted(num_faults, 'fault')}):\n{shown}"
        )
    console.print("verified", highlight=False)


def _input_faults(plan: Plan, stores: Stores) -> list[str]:
    """The input files that are not as they were planned; without them no row can be verified."""
    columns = plan.job.columns.columns()

    def fault_of(file: PlannedFile) -> str:
        rows_uri = plan.rows_uri(file)
        return _input_fault(stores.of(rows_uri), file, rows_uri, columns)

    return [*filter(None, map_in_flight(fault_of, plan.files, at_once=FOOTERS_AT_ONCE))]


def _input_fault(storage: Storage, file: PlannedFile, rows_uri: str, columns: Collection[str]) -> str:
    """What is wrong with an input file, or with its copy; empty if it is as it was planned."""
    stored = storage.stat(rows_uri)
    if stored is None:
        return f"the input {rows_uri} is gone since the job was planned"
    if not file.copy and (stored.etag != file.etag or not has_hash(storage, file)):
        return f"the input {file.uri} has changed since the job was planned"
    try:
        with storage.open(rows_uri) as source:
            footer = pq.read_metadata(source)
        missing = {*columns} - {*footer.schema.to_arrow_schema().names, *folder_columns(file.uri)}
    except (pa.ArrowException, OSError) as error:
        return f"the input {file.uri} cannot be read: {error}"
    if footer.num_rows != file.num_rows:
        return f"the input {file.uri} has {footer.num_rows:,} rows, not the {file.num_rows:,} of {JOB_RECORD}"
    if missing and footer.num_rows:
        return f"the input {file.uri} has no column {', '.join(sorted(missing))}, which {JOB_RECORD} names"
    return ""


def _expected_shards(plan: Plan, stores: Stores) -> Iterator[_ExpectedShard]:
    """Every shard with the row ids that its part must have. Only ids and routing columns are read."""
    router = Router(plan.job.spec, plan.job.models)
    names = plan.file_names
    for file, upcoming in plan.shards_by_file():
        ids: defaultdict[str, list[Any]] = defaultdict(list)
        current = {model: next(upcoming[model], None) for model in upcoming}
        for model, row_id in _ids(plan, stores, file, names[file.uri], router):
            if (current_shard := current[model]) is None:
                raise RefusedError(f"`rows_by_model` in {JOB_RECORD} does not match the rows of {file.uri}")
            ids[model].append(row_id)
            if len(ids[model]) == current_shard.num_rows:
                yield current_shard, ids.pop(model)
                current[model] = next(upcoming[model], None)


def _ids(
    plan: Plan, stores: Stores, file: PlannedFile, name: str, router: Router
) -> Iterator[tuple[str, Any]]:
    """(model, row_id) of every row of a file; `name` begins the ids of rows whose input has none."""
    rows_uri = plan.rows_uri(file)
    with InputFile(stores.of(rows_uri).open(rows_uri), plan.job.columns, file.uri) as opened:
        for batch in opened.read_routing(with_ids=True):
            tasks, models = batch.fields.get("task"), batch.fields.get("model")
            positions, routes = router.resolve_batch(tasks, models, batch.num_rows)
            ids = batch.fields["row_id"].to_pylist() if "row_id" in batch.fields else None
            for i, position in enumerate(positions.tolist()):
                row_id = ids[i] if ids else derived_row_id(name, batch.first_row + i)
                yield routes[position].model, row_id


class _Verifier:
    """Checks parts. Several threads may call it."""

    def __init__(self, output: Output, record: JobRecord, plan: Plan, parts: Parts) -> None:
        self._output = output
        self._record = record
        self._router = Router(plan.job.spec, plan.job.models)
        self._parts = parts

    def check(self, expected: _ExpectedShard) -> PartVerdict:
        """The result of comparing a part with the ids that it must have."""
        shard, ids = expected
        if not self._parts.has(shard.index):
            faults = [f"{shard.name} is missing: run again"]
            return PartVerdict(rows=Counter(), images=0, withheld=0, faults=faults)
        uri = self._output.part_uri(shard.name)
        part_check = PartCheck(shard.name, ids, self._record.spec, self._router, self._read_image)
        try:
            with (
                self._output.storage.open(uri) as source,
                pq.ParquetFile(source, page_checksum_verification=True) as part,
            ):
                part_check.footer(part.metadata.metadata or {}, self._record.fingerprint)
                self._check_rows(part, part_check)
        # ValueError: a text is not valid UTF-8.
        except (pa.ArrowException, OSError, ValueError) as error:
            part_check.faults.append(f"{shard.name} cannot be read: {error}")
        return part_check.verdict()

    def _read_image(self, uri: str) -> bytes:
        if self._record.spec.output.images != "files":
            raise RowError("missing_image", "its bytes are not in the part")
        return read_image(self._output, uri)

    def _check_rows(self, part: pq.ParquetFile, part_check: PartCheck) -> None:
        schema = part.schema_arrow
        if problems := column_problems(schema):
            part_check.faults.append(f"{part_check.name} is not a darkroom part: {'; '.join(problems)}")
            return
        columns = [*PART_COLUMNS, *(name for name in OPTIONAL_PART_COLUMNS if name in schema.names)]
        for batch in part.iter_batches(batch_size=64, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                part_check.row(row)
        part_check.end()
