"""Choosing what a contact sheet shows of an output of any size, and fetching it.

What is read is bounded: footers of MAX_FOOTERS parts, the pictures of MAX_GROUPS row groups and of each
only its first few rows, and the failed rows of MAX_FAILED_PARTS parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.storage.objects import Storage
from actors.storage.output import Output
from jobs.output.part_footers import PartFooter, RowGroup
from jobs.reports.even_choice import by_key, share
from jobs.reports.thumbnails import Thumbnails, text, thumbnails_of
from schemas.errors import RefusedError
from schemas.systems.parameters import PARAMETERS

MAX_FOOTERS = 1024
"""Parts that are looked at for what they hold and whether rows failed, evenly over the output."""
MAX_GROUPS = 64
"""Row groups whose pictures are read."""
IMAGE_BYTES = 256 << 20
"""Of embedded pictures, read in all. A group is read from its beginning, so this makes a number of rows."""
MAX_ROWS_PER_GROUP = 512
MAX_FAILED_PARTS = 16
MAX_FAILURES = 50
FILTERED_SHARE = 10
"""One frame in this many may be of a withheld picture: there is little to see on them."""

GROUPS_AT_ONCE = 4
THUMBNAILS_AT_ONCE = 8
ROWS_AT_ONCE = 16
READ_BUFFER_BYTES = 1 << 20

FAILURE_COLUMNS = ("row_id", "task", "model", "prompt", "status", "error_code", "error_message")
OWN_COLUMNS = frozenset(
    {
        *FAILURE_COLUMNS,
        "image_index",
        "image",
        "depth",
        "width",
        "height",
        "negative_prompt",
        "seed",
        "nsfw",
        "image_sha256",
        "depth_sha256",
    }
)
"""What a part has beside the parameters and the kept columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One picture of the sheet, with all that its row says. Values are text: JavaScript rounds an int64."""

    row_id: str
    image_index: int
    task: str
    model: str
    status: str
    prompt: str
    negative_prompt: str
    seed: str
    width: int | None
    height: int | None
    parameters: Mapping[str, str]
    """The resolved ones, in the order of the columns."""
    keep: Mapping[str, str]
    """Columns copied from the input, where a line of text can show them."""
    thumbnail: str | None
    """A data: URI; None where the picture was withheld or cannot be opened."""
    depth: str | None
    """The depth map's, in eight bits of its sixteen; None where the system gives none."""
    problem: str
    """Why the picture cannot be opened; else empty."""
    place: str
    """The part and the row in it, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One row that was not made."""

    row_id: str
    task: str
    model: str
    prompt: str
    error_code: str
    error_message: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A row that could be shown."""

    group: RowGroup
    row: int
    """In the group."""
    kind: tuple[str | None, ...]
    """Its task and model."""
    status: str


def sample_frames(
    output: Output, footers: Sequence[PartFooter], max_images: int, image_bytes: int
) -> Iterator[Frame]:
    """Frames in the order of the output, evenly over models, tasks, and the parts."""
    with_images = [group for footer in footers for group in footer.groups if group.has_images]
    groups = share(by_key((group.kinds, group) for group in with_images), min(MAX_GROUPS, max_images))
    if not groups:
        return
    at_least = -(-max_images // len(groups))
    with ThreadPoolExecutor(GROUPS_AT_ONCE) as pool, ThreadPoolExecutor(THUMBNAILS_AT_ONCE) as printers:
        found = pool.map(
            lambda group: _candidates(output.storage, group, image_bytes // len(groups), at_least), groups
        )
        rows = _choose([candidate for some in found for candidate in some], max_images)
        wanted = sorted(rows, key=lambda group: (group.uri, group.index))
        for frames in pool.map(lambda group: _develop(output, group, rows[group], printers), wanted):
            yield from frames


def _candidates(storage: Storage, group: RowGroup, budget_bytes: int, at_least: int) -> list[_Candidate]:
    """The first rows of a group: as many as may be read, and no failed ones."""
    row_bytes = max(1, group.image_bytes // group.num_rows)
    num_rows = max(at_least, min(MAX_ROWS_PER_GROUP, budget_bytes // row_bytes))
    candidates: list[_Candidate] = []
    for first, batch in _read_batches(storage, group, ["task", "model", "status"], num_rows):
        candidates += (
            _Candidate(group=group, row=row, kind=(values["task"], values["model"]), status=values["status"])
            for row, values in enumerate(batch.to_pylist(), first)
            if row < num_rows and values["status"] != "failed"
        )
        if first + batch.num_rows >= num_rows:
            break
    return candidates


def _choose(candidates: Sequence[_Candidate], max_images: int) -> dict[RowGroup, list[int]]:
    """Rows to show, ascending, by group."""
    filtered = by_key((row.kind, row) for row in candidates if row.status == "filtered")
    made = by_key((row.kind, row) for row in candidates if row.status != "filtered")
    chosen = share(filtered, max_images // FILTERED_SHARE)
    chosen += share(made, max_images - len(chosen))
    rows = by_key((row.group, row.row) for row in chosen)
    return {group: sorted(numbers) for group, numbers in rows.items()}


def _develop(
    output: Output, group: RowGroup, rows: Sequence[int], printers: ThreadPoolExecutor
) -> list[Frame]:
    """Read a group up to the last wanted row, a few rows at a time, keeping no more than thumbnails."""
    frames: list[Frame] = []
    num_rows = min(ROWS_AT_ONCE, rows[-1] + 1)
    for first, batch in _read_batches(output.storage, group, [*group.columns, *group.pictures], num_rows):
        here = [row - first for row in rows if first <= row < first + batch.num_rows]
        records = _records(batch.take(pa.array(here, pa.int64())))
        printed = printers.map(lambda record: thumbnails_of(output, record), records)
        for row, record, printed_record in zip(here, records, printed, strict=True):
            frames.append(_frame(record, printed_record, _place(group, first + row)))
        if first + batch.num_rows > rows[-1]:
            break
    return frames


def _records(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    names, columns = batch.schema.names, map(_values, batch.columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(array: pa.Array) -> list[Any]:
    """Python's, or Arrow's words for them: kept columns may hold dates of far-off years."""
    try:
        return list(array.to_pylist())
    except (OverflowError, ValueError):
        in_utc = array.cast(pa.timestamp(array.type.unit)) if pa.types.is_timestamp(array.type) else array
        return list(in_utc.cast(pa.string()).to_pylist())


def _read_batches(
    storage: Storage, group: RowGroup, columns: Sequence[str], num_rows: int
) -> Iterator[tuple[int, Any]]:
    """Batches of a row group and the number of their first row; what follows the last is not read."""
    try:
        with (
            storage.open(group.uri) as file,
            # With its defaults pyarrow 26 fetches whole column chunks, however few rows are taken.
            pq.ParquetFile(
                file,
                metadata=group.footer,
                buffer_size=READ_BUFFER_BYTES,
                pre_buffer=False,
                page_checksum_verification=True,
            ) as parquet,
        ):
            first = 0
            for batch in parquet.iter_batches(num_rows, [group.index], list(columns), use_threads=False):
                yield first, batch
                first += batch.num_rows
    # ValueError: of texts that are no UTF-8.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RefusedError(f"{group.uri} cannot be read: {error}") from error


def _frame(record: Mapping[str, Any], printed: Thumbnails, place: str) -> Frame:
    given = {name: text(value) for name, value in record.items() if value is not None}
    return Frame(
        row_id=given.get("row_id", ""),
        image_index=record["image_index"] or 0,
        task=given.get("task", ""),
        model=given.get("model", ""),
        status=given.get("status", ""),
        prompt=given.get("prompt", ""),
        negative_prompt=given.get("negative_prompt", ""),
        seed=given.get("seed", ""),
        width=record["width"],
        height=record["height"],
        parameters={name: given[name] for name in PARAMETERS if name in given and name not in OWN_COLUMNS},
        keep={name: value for name, value in given.items() if name not in {*OWN_COLUMNS, *PARAMETERS}},
        thumbnail=printed.thumbnail,
        depth=printed.depth,
        problem=printed.problem,
        place=place,
    )


def sample_failures(storage: Storage, footers: Sequence[PartFooter]) -> list[Failure]:
    """Failed rows of every error code, from parts that are known to have some."""
    with_code = by_key((code, i) for i, footer in enumerate(footers) for code in footer.error_codes)
    chosen = sorted(set(share(with_code, MAX_FAILED_PARTS)))
    if not chosen:
        return []
    each = -(-MAX_FAILURES // len(chosen))
    with ThreadPoolExecutor(GROUPS_AT_ONCE) as pool:
        found = pool.map(lambda i: list(_failures_of(storage, footers[i], each)), chosen)
        by_code = by_key((failure.error_code, failure) for failures in found for failure in failures)
    return share(by_code, MAX_FAILURES)


def _failures_of(storage: Storage, footer: PartFooter, each: int) -> Iterator[Failure]:
    """A part's first `each` failed rows of every code; reading stops with the last of them."""
    missing = {code: min(each, num_rows) for code, num_rows in footer.error_codes.items()}
    for group in (group for group in footer.groups if group.has_failures):
        for first, batch in _read_batches(storage, group, FAILURE_COLUMNS, MAX_ROWS_PER_GROUP):
            for row, record in enumerate(batch.to_pylist(), first):
                if record["status"] == "failed" and missing.get(record["error_code"], 0):
                    missing[record["error_code"]] -= 1
                    yield _failure(record, _place(group, row))
            if not any(missing.values()):
                return


def _failure(record: Mapping[str, Any], place: str) -> Failure:
    given = {name: text(value) for name, value in record.items() if value is not None}
    return Failure(**{name: given.get(name, "") for name in FAILURE_COLUMNS if name != "status"}, place=place)


def _place(group: RowGroup, row: int) -> str:
    return f"{group.uri.rpartition('/')[2]}, row {group.first_row + row}"
