"""`darkroom verify`: reads an output again and proves the row contract, or says where it is broken."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
from jobs.output.job_record import JobRecord, plan_of_record, require_record
from jobs.output.parts import FOOTERS_AT_ONCE, list_parts
from jobs.output.stored_images import read_image
from jobs.planning.plan import Plan
from jobs.verification.part_check import PartCheck, PartVerdict
from schemas.columns.output_columns import OPTIONAL_PART_COLUMNS, PART_COLUMNS, STATUSES, column_problems
from schemas.errors import DarkroomError, RefusedError, RowError
from schemas.job import NO_MODEL, PlannedFile, Shard
from schemas.output_layout import JOB_RECORD

PARTS_AT_ONCE = 4
MAX_SHOWN = 20


_Item = tuple[Shard, list[Any]]
"""A shard and the row_ids it must hold, in order."""


def verify_output(path: str, console: Console) -> None:
    """Hold every part against the input; DarkroomError where anything is wrong or missing."""
    output = open_output(path)
    record = require_record(output)
    plan = plan_of_record(record)
    there = {part.index for part in list_parts(output, record.num_shards)}
    verifier = _Verifier(output, record, plan, there)
    rows: Counter[str] = Counter()
    images = withheld = 0
    faults = _input_faults(plan)
    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        for verdict in [] if faults else _map_ahead(pool, verifier.check, _expected(plan)):
            rows += verdict.rows
            images += verdict.images
            withheld += verdict.withheld
            faults += verdict.faults
    counts = ", ".join(f"{rows[status]:,} {status}" for status in STATUSES)
    console.print(
        f"{sum(rows.values()):,} of {plan.num_rows:,} input rows have one outcome each ({counts}); "
        f"{images:,} pictures decode and match their checksums"
        + (f", {withheld:,} were flagged and dropped" if withheld else "")
        + f"; {len(there):,} of {plan.num_shards:,} parts",
        highlight=False,
        soft_wrap=True,
    )
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:MAX_SHOWN])
        raise DarkroomError(
            f"{output.path} does not keep the row contract ({len(faults):,} faults):\n{shown}"
        )
    console.print("verified", highlight=False)


def _map_ahead(
    pool: ThreadPoolExecutor, check: Callable[[_Item], PartVerdict], items: Iterator[_Item]
) -> Iterator[PartVerdict]:
    """Like `pool.map`, which would draw all the items before it gives the first result."""
    ahead: deque[Future[PartVerdict]] = deque()
    for item in items:
        ahead.append(pool.submit(check, item))
        if len(ahead) > 2 * PARTS_AT_ONCE:
            yield ahead.popleft().result()
    yield from (future.result() for future in ahead)


def _input_faults(plan: Plan) -> list[str]:
    """Without the very input that was planned, nothing about the rows can be said."""
    stores, columns = Stores(plan.job.spec.errors.storage_deadline_s), plan.job.columns.columns()
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        faults = pool.map(lambda file: _input_fault(stores.of(file.uri), file, columns), plan.files)
        return [fault for fault in faults if fault]


def _input_fault(storage: Storage, file: PlannedFile, columns: Collection[str]) -> str:
    stored = storage.stat(file.uri)
    if stored is None or stored.etag != file.etag:
        state = "is gone" if stored is None else "has changed"
        return f"the input {file.uri} {state} since the job was planned"
    try:
        with storage.open(file.uri) as source:
            footer = pq.read_metadata(source)
        missing = {*columns} - {*footer.schema.to_arrow_schema().names}
    except (pa.ArrowException, OSError) as error:
        return f"the input {file.uri} cannot be read: {error}"
    if footer.num_rows != file.num_rows:
        return f"the input {file.uri} has {footer.num_rows:,} rows, not the {file.num_rows:,} of {JOB_RECORD}"
    if missing:
        return f"the input {file.uri} has no column {', '.join(sorted(missing))}, which {JOB_RECORD} names"
    return ""


def _expected(plan: Plan) -> Iterator[_Item]:
    """Every shard with the row_ids it must hold, in order; reads ids and routing columns only."""
    shards: dict[tuple[str, str], list[Shard]] = {}
    for shard in plan.shards():
        shards.setdefault((shard.uri, shard.model), []).append(shard)
    router = Router(plan.job.spec, plan.job.models)
    names = plan.file_names
    for file in plan.files:
        waiting: defaultdict[str, list[Any]] = defaultdict(list)
        coming = {model: iter(shards.get((file.uri, model), ())) for model in [*plan.job.models, NO_MODEL]}
        nearest = {model: next(coming[model], None) for model in coming}
        for model, row_id in _ids(plan, file.uri, names[file.uri], router):
            if (filling := nearest[model]) is None:
                raise RefusedError(
                    f"`rows_by_model` in {JOB_RECORD} is not what the rows of {file.uri} come to"
                )
            waiting[model].append(row_id)
            if len(waiting[model]) == filling.num_rows:
                yield filling, waiting.pop(model)
                nearest[model] = next(coming[model], None)


def _ids(plan: Plan, uri: str, name: str, router: Router) -> Iterator[tuple[str, Any]]:
    """(model, row_id) of every row of a file, whose name is that of its rows."""
    with InputFile(
        Stores(plan.job.spec.errors.storage_deadline_s).of(uri).open(uri), plan.job.columns
    ) as file:
        for batch in file.read_routing(with_ids=True):
            tasks, models = batch.fields.get("task"), batch.fields.get("model")
            positions, routes = router.resolve_batch(tasks, models, batch.num_rows)
            ids = batch.fields["row_id"].to_pylist() if "row_id" in batch.fields else None
            for i, position in enumerate(positions.tolist()):
                row_id = ids[i] if ids else derived_row_id(name, batch.first_row + i)
                yield routes[position].model, row_id


class _Verifier:
    """Checks parts; safe to call from several threads."""

    def __init__(self, output: Output, record: JobRecord, plan: Plan, there: set[int]) -> None:
        self._output = output
        self._record = record
        self._router = Router(plan.job.spec, plan.job.models)
        self._there = there

    def check(self, expected: _Item) -> PartVerdict:
        """One part against the ids it must hold."""
        shard, ids = expected
        if shard.index not in self._there:
            faults = [f"{shard.name} is missing: run again"]
            return PartVerdict(rows=Counter(), images=0, withheld=0, faults=faults)
        uri = self._output.part_uri(shard.name)
        found = PartCheck(shard.name, ids, self._record.spec, self._router, self._read_image)
        try:
            with (
                self._output.storage.open(uri) as source,
                pq.ParquetFile(source, page_checksum_verification=True) as part,
            ):
                found.footer(part.metadata.metadata or {}, self._record.fingerprint)
                self._check_rows(part, found)
        # ValueError: of texts that are no UTF-8.
        except (pa.ArrowException, OSError, ValueError) as error:
            found.faults.append(f"{shard.name} cannot be read: {error}")
        return found.verdict()

    def _read_image(self, uri: str) -> bytes:
        if self._record.spec.output.images != "files":
            raise RowError("missing_image", "its bytes are not in the part")
        return read_image(self._output, uri)

    def _check_rows(self, part: pq.ParquetFile, found: PartCheck) -> None:
        there = part.schema_arrow
        if wrong := column_problems(there):
            found.faults.append(f"{found.name} is no part of darkroom's: {'; '.join(wrong)}")
            return
        columns = [*PART_COLUMNS, *(name for name in OPTIONAL_PART_COLUMNS if name in there.names)]
        for batch in part.iter_batches(batch_size=64, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                found.row(row)
        found.end()
