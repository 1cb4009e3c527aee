"""`darkroom verify`: reads an output again and proves the row contract, or says where it is broken."""

import hashlib
import io
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from actors.images.input_images import FORMATS
from actors.inputs.input_file import InputFile
from actors.parts.commit import JOB_KEY, SHARD_KEY
from actors.rows.routing import Routed, Router
from actors.rows.row import derived_row_id
from actors.storage.objects import Storage
from actors.storage.stores import open_storage
from actors.storage.uris import join, normalise
from jobs.output.job_record import JobRecord, plan_of_record, require_record
from jobs.output.parts import FOOTERS_AT_ONCE, Totals, list_parts, totals_in
from jobs.output.stored_images import read_picture
from jobs.planning.input_paths import input_opener
from jobs.planning.plan import Plan
from schemas.columns.output_columns import NEVER_NULL, PART_COLUMNS, PART_COLUMNS_IF_THERE, STATUSES, misfits
from schemas.errors import DarkroomError, RefusedError, RowError
from schemas.job import NO_MODEL, RECORD, PlannedFile, Shard
from schemas.spec.job_spec import JobSpec
from schemas.wording.printable import shortened

PARTS_AT_ONCE = 4
MAX_SHOWN = 20
DEPTH_MODE = "I;16"
MAX_GROWTH = 16
"""Pixels that come out for one that goes in, at most: of an upscaler four times as wide."""


_Item = tuple[Shard, list[Any]]
"""A shard and the row_ids it must hold, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartVerdict:
    """What one part was found to be."""

    rows: Counter[str]
    """Input rows by outcome."""
    images: int
    """Pictures that decode and have the recorded checksum and size."""
    withheld: int
    """Pictures that a safety checker flagged and that the spec has dropped."""
    faults: list[str]


def verify_output(output: str, console: Console) -> None:
    """Hold every part against the input; DarkroomError where anything is wrong or missing."""
    folder = normalise(output)
    storage = open_storage(folder)
    record = require_record(storage, folder)
    plan = plan_of_record(record)
    there = {part.index for part in list_parts(storage, folder, record.num_shards)}
    verifier = _Verifier(storage, folder, record, plan, there)
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
        raise DarkroomError(f"{folder} does not keep the row contract ({len(faults):,} faults):\n{shown}")
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
    opener, columns = input_opener(plan.job.spec), plan.job.columns.columns()
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        faults = pool.map(lambda file: _input_fault(opener(file.uri), file, columns), plan.files)
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
        return f"the input {file.uri} has {footer.num_rows:,} rows, not the {file.num_rows:,} of {RECORD}"
    if missing:
        return f"the input {file.uri} has no column {', '.join(sorted(missing))}, which {RECORD} names"
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
                raise RefusedError(f"`rows_by_model` in {RECORD} is not what the rows of {file.uri} come to")
            waiting[model].append(row_id)
            if len(waiting[model]) == filling.num_rows:
                yield filling, waiting.pop(model)
                nearest[model] = next(coming[model], None)


def _ids(plan: Plan, uri: str, name: str, router: Router) -> Iterator[tuple[str, Any]]:
    """(model, row_id) of every row of a file, whose name is that of its rows."""
    with InputFile(input_opener(plan.job.spec)(uri).open(uri), plan.job.columns) as file:
        for batch in file.read_routing(with_ids=True):
            tasks, models = batch.fields.get("task"), batch.fields.get("model")
            positions, routed = router.resolve_batch(tasks, models, batch.num_rows)
            ids = batch.fields["row_id"].to_pylist() if "row_id" in batch.fields else None
            for i, position in enumerate(positions.tolist()):
                row_id = ids[i] if ids else derived_row_id(name, batch.first_row + i)
                yield routed[position].model, row_id


class _Verifier:
    """Checks parts; safe to call from several threads."""

    def __init__(self, storage: Storage, output: str, record: JobRecord, plan: Plan, there: set[int]) -> None:
        self._storage = storage
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
        uri = join(self._output, "data", f"{shard.name}.parquet")
        found = _PartCheck(shard.name, ids, self._record.spec, self._router, self._read_picture)
        try:
            with (
                self._storage.open(uri) as source,
                pq.ParquetFile(source, page_checksum_verification=True) as part,
            ):
                found.footer(part.metadata.metadata or {}, self._record.fingerprint)
                self._check_rows(part, found)
        # ValueError: of texts that are no UTF-8.
        except (pa.ArrowException, OSError, ValueError) as error:
            found.faults.append(f"{shard.name} cannot be read: {error}")
        return found.verdict()

    def _read_picture(self, uri: str) -> bytes:
        if self._record.spec.output.images != "files":
            raise RowError("missing_image", "its bytes are not in the part")
        return read_picture(self._storage, self._output, uri)

    def _check_rows(self, part: pq.ParquetFile, found: "_PartCheck") -> None:
        there = part.schema_arrow
        if wrong := misfits(there):
            found.faults.append(f"{found.name} is no part of darkroom's: {'; '.join(wrong)}")
            return
        columns = [*PART_COLUMNS, *(name for name in PART_COLUMNS_IF_THERE if name in there.names)]
        for batch in part.iter_batches(batch_size=64, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                found.row(row)
        found.end()


class _PartCheck:
    """What is known of a part while its rows go by."""

    def __init__(
        self, name: str, ids: list[Any], spec: JobSpec, router: Router, read_picture: Callable[[str], bytes]
    ) -> None:
        """`read_picture`: reads what a part names instead of holding it."""
        self.name = name
        self._ids = ids
        self._flagged = spec.safety.flagged
        self._max_pixels = spec.input.max_pixels * MAX_GROWTH
        self._router = router
        self._read_picture = read_picture
        self._outcomes: list[str] = []
        self._last_index = -1
        self._stored = 0
        """Rows with a picture."""
        self._images = 0
        self._withheld = 0
        self._error_codes: Counter[str] = Counter()
        self._totals: Totals | None = None
        """What the footer says of the rows."""
        self.faults: list[str] = []

    def footer(self, metadata: dict[bytes, bytes], fingerprint: str) -> None:
        """Whose part it says it is, and what of its rows."""
        job, shard = (metadata.get(key, b"").decode(errors="replace") for key in (JOB_KEY, SHARD_KEY))
        if (job, shard) != (fingerprint, self.name):
            self.faults.append(f"{self.name} says it is shard {shard!r} of job {job!r}")
        try:
            self._totals = totals_in(metadata, self.name)
        except RefusedError as error:
            self.faults.append(str(error))

    def row(self, row: dict[str, Any]) -> None:
        """The next row of the part: one picture, or one failure."""
        if nulls := [name for name in NEVER_NULL if row[name] is None]:
            self._fault(row, f"has no {' and no '.join(nulls)}")
            return
        if row["image_index"] == 0:
            self._begin(row)
        elif row["image_index"] == self._last_index + 1 and self._outcomes:
            if row["status"] == "filtered":
                self._outcomes[-1] = "filtered"
        else:
            self._fault(row, f"image_index is {row['image_index']} after {self._last_index}")
        self._last_index = row["image_index"]
        self._stored += row["image"] is not None
        place = len(self._outcomes) - 1
        if 0 <= place < len(self._ids) and row["row_id"] != self._ids[place]:
            self._fault(row, f"stands where row {self._ids[place]!r} of the input belongs")
        self._check_outcome(row)

    def _begin(self, row: dict[str, Any]) -> None:
        self._outcomes.append(row["status"])
        if row["status"] == "failed" and row["error_code"]:
            self._error_codes[row["error_code"]] += 1
        if len(self._outcomes) > len(self._ids):
            self._fault(row, "is one row more than the shard has")

    def _check_outcome(self, row: dict[str, Any]) -> None:
        status, image = row["status"], row["image"]
        if status not in STATUSES:
            self._fault(row, f"has the status {status!r}")
        elif status == "ok" and image is None:
            self._fault(row, "is ok and has no image")
        elif image is None and (row.get("depth") or row.get("step_images")):
            self._fault(row, "has no image, but a depth map or steps")
        elif status == "failed" and (image is not None or not row["error_code"]):
            self._fault(row, "failed, and has an image or no error_code")
        elif (status == "filtered") != (row["nsfw"] is True):
            self._fault(row, f"is {status}, and its nsfw is {row['nsfw']}")
        elif status == "filtered" and (image is None) != (self._flagged == "drop"):
            has = "no" if image is None else "an"
            self._fault(row, f"is filtered, and has {has} image though the spec says {self._flagged}")
        elif image is not None:
            self._check_image(row)
        elif status == "filtered":
            self._withheld += 1

    def _check_image(self, row: dict[str, Any]) -> None:
        picture = self._opened(row, "a picture", row["image"], "image_sha256")
        if picture is None:
            return
        if picture.size != (row["width"], row["height"]):
            self._fault(row, f"has a picture of {picture.size}, not {row['width']}x{row['height']}")
            return
        self._images += 1
        routed = self._router.resolve(row["task"], row["model"])
        self._check_depth(row, (routed, *routed.then)[-1])
        self._check_steps(row, routed)

    def _check_depth(self, row: dict[str, Any], last: Routed) -> None:
        depth = row.get("depth")
        gives_depth = last.system is not None and last.system.gives_depth
        if (depth is not None) != gives_depth:
            has = "no" if depth is None else "a"
            self._fault(row, f"has {has} depth map; {last.route} gives {'one' if gives_depth else 'none'}")
        elif depth is not None:
            found = self._opened(row, "a depth map", depth, "depth_sha256")
            if found is not None and (found.mode, found.size) != (DEPTH_MODE, (row["width"], row["height"])):
                self._fault(
                    row,
                    f"has a depth map of {found.size} and mode {found.mode}, "
                    f"not {row['width']}x{row['height']} and {DEPTH_MODE}",
                )

    def _check_steps(self, row: dict[str, Any], routed: Routed) -> None:
        steps = row.get("step_images") or []
        wanted = len(routed.then) if routed.keep_steps else 0
        if len(steps) != wanted:
            self._fault(row, f"has {len(steps)} step_images, not {wanted}")
        for place, step in enumerate(steps, 1):
            self._opened(row, f"a picture of step {place}", step)

    def _opened(
        self, row: dict[str, Any], what: str, stored: dict[str, Any] | None, checksum: str | None = None
    ) -> Image.Image | None:
        """A stored picture, decoded; None, and a fault, where it is not what the column `checksum` says."""
        try:
            data = self._read(stored or {})
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if picture.width * picture.height > self._max_pixels:
                raise ValueError(f"{picture.width}x{picture.height} pixels are more than a row may ask for")
            picture.load()
        except (OSError, SyntaxError, ValueError, DarkroomError) as error:
            self._fault(row, f"has {what} that does not open: {error}")
            return None
        if checksum and hashlib.sha256(data).hexdigest() != row[checksum]:
            self._fault(row, f"has {what} with another checksum")
            return None
        if row["status"] == "filtered" and self._flagged == "black" and picture.getbbox() is not None:
            self._fault(row, f"is filtered, and has {what} that is not black")
            return None
        return picture

    def _read(self, stored: dict[str, Any]) -> bytes:
        if stored.get("bytes") is not None:
            return bytes(stored["bytes"])
        return self._read_picture(stored.get("path") or "")

    def _fault(self, row: dict[str, Any], message: str) -> None:
        self.faults.append(f"{self.name}: row {shortened(repr(row['row_id']))} {message}")

    def end(self) -> None:
        """All rows have gone by: whether they are those of which the footer speaks."""
        if self._totals is None:
            return
        said = asdict(self._totals)
        found = {**{status: self._outcomes.count(status) for status in STATUSES}, "images": self._stored}
        for name, number in found.items():
            if said[name] != number:
                self.faults.append(
                    f"{self.name}: its footer says {said[name]:,} {name}; there are {number:,}"
                )
        codes = dict(self._totals.error_codes)
        if codes != self._error_codes:
            there = dict(self._error_codes)
            self.faults.append(f"{self.name}: its footer says of error codes {codes}; there are {there}")

    def verdict(self) -> PartVerdict:
        """When all rows have gone by."""
        if len(self._outcomes) != len(self._ids):
            self.faults.append(f"{self.name} has {len(self._outcomes)} rows of {len(self._ids)}")
        return PartVerdict(
            rows=Counter(self._outcomes), images=self._images, withheld=self._withheld, faults=self.faults
        )
