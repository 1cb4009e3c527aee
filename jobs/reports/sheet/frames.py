"""Choosing the images and failed rows that a contact sheet shows, and reading them.

Outputs may have any size, so the reading is bounded: the footers of MAX_FOOTERS parts, the images of
MAX_GROUPS row groups (only the first rows of each), and the failed rows of MAX_FAILED_PARTS parts.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.rows.routing import Router
from actors.storage.objects import Storage
from actors.storage.output import Output
from jobs.output.part_footers import PartFooter, RowGroup
from jobs.reports.sheet.chain_steps import ChainStep, chain_steps
from jobs.reports.sheet.copied_row import row_line
from jobs.reports.sheet.even_choice import by_key, share
from jobs.reports.sheet.thumbnails import (
    LARGE,
    SMALL,
    KeptImage,
    Thumbnails,
    id_text,
    text,
    thumbnails_of,
)
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.columns.sweep_columns import is_sweep_column
from schemas.errors import RefusedError
from schemas.systems.parameters import PARAMETERS

MAX_FOOTERS = 1024
"""Parts whose footers are read, chosen evenly over the output."""
MAX_GROUPS = 64
"""Row groups whose images are read."""
IMAGE_BYTES = 256 << 20
"""Embedded images that are read over all groups. A group is read from its start, so this limits its rows."""
MAX_ROWS_PER_GROUP = 512
"""The first rows of a group that may be shown; also the rows that are read at once."""
MAX_FAILED_PARTS = 256
"""Parts that are read for failed rows."""
MAX_FAILURES = 2000
"""Failed rows that are shown; with FAILURE_TEXT they take a few megabytes of the page at most."""
FAILURE_TEXT = 300
"""Characters of each text of a failed row."""
FILTERED_SHARE = 10
"""One frame in this many may be of a withheld image, because such a frame shows nothing."""

GROUPS_AT_ONCE = 4
FAILED_PARTS_AT_ONCE = 16
THUMBNAILS_AT_ONCE = 8
ROWS_AT_ONCE = 16
"""Rows of one group whose images are in memory together."""
READ_BUFFER_BYTES = 1 << 20

MANY_FRAMES = 600
"""A page of more frames has smaller thumbnails."""

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
        "step_images",
    }
)
"""The columns of a part that are neither parameters nor kept columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One image of the sheet with the values of its row, as text: JavaScript would round an int64."""

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
    """The resolved parameters, in the order of the columns."""
    keep: Mapping[str, str]
    """Kept columns that can be shown as a line of text."""
    thumbnail: str | None
    """The image as a data: URI; None where it was withheld or cannot be opened."""
    depth: str | None
    """The depth map as a data: URI, with eight of its sixteen bits; None where the system gives none."""
    problem: str
    """Why the image cannot be opened; else empty."""
    steps: tuple[ChainStep, ...]
    """The steps of the row's chain; empty for a row of one step."""
    kept_images: tuple[KeptImage, ...]
    """The images that were kept of the input row."""
    place: str
    """The part's file name and the row in it, counted from 0."""
    line: str
    """The row as a line of JSON that darkroom takes as input; empty if it is too long for the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed row."""

    row_id: str
    task: str
    model: str
    prompt: str
    error_code: str
    error_message: str
    place: str
    """The part's file name and the row in it, counted from 0."""
    keep: Mapping[str, str]
    """The columns of a sweep, which tell where the row is in a grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A row that could be shown."""

    group: RowGroup
    row: int
    """Position in the group."""
    kind: tuple[str | None, ...]
    """(task, model)."""
    status: str


def sample_frames(
    output: Output, router: Router, footers: Sequence[PartFooter], max_images: int, image_bytes: int
) -> Iterator[Frame]:
    """At most `max_images` frames in the order of the output, chosen evenly over models, tasks and parts.

    About `image_bytes` of embedded images are read for them.
    """
    with_images = [group for footer in footers for group in footer.groups if group.has_images]
    # Every image is shown where all of them fit, so that a sweep's grid has no holes.
    all_fit = sum(group.num_rows for group in with_images) <= max_images
    max_groups = max_images if all_fit else min(MAX_GROUPS, max_images)
    groups = share(by_key((group.kinds, group) for group in with_images), max_groups)
    if not groups:
        return
    at_least = max_images if all_fit else -(-max_images // len(groups))
    with ThreadPoolExecutor(GROUPS_AT_ONCE) as pool, ThreadPoolExecutor(THUMBNAILS_AT_ONCE) as thumbnail_pool:
        candidates = pool.map(
            lambda group: _candidates(output.storage, group, image_bytes // len(groups), at_least), groups
        )
        rows = _choose([candidate for of_group in candidates for candidate in of_group], max_images)
        limits = LARGE if sum(map(len, rows.values())) <= MANY_FRAMES else SMALL

        def draw(records: Sequence[Mapping[str, Any]], kept: Sequence[str]) -> Iterator[Thumbnails]:
            return thumbnail_pool.map(lambda record: thumbnails_of(output, record, kept, limits), records)

        chosen_groups = sorted(rows, key=lambda group: (group.uri, group.index))
        for frames in pool.map(
            lambda group: _frames_of(output.storage, router, group, rows[group], draw), chosen_groups
        ):
            yield from frames


def _candidates(storage: Storage, group: RowGroup, budget_bytes: int, at_least: int) -> list[_Candidate]:
    """The first rows of a group that have not failed: as many as `budget_bytes` of images allow.

    `at_least` rows are read in any case.
    """
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
    """The rows to show, in ascending order, by group."""
    filtered = by_key((row.kind, row) for row in candidates if row.status == "filtered")
    ok = by_key((row.kind, row) for row in candidates if row.status != "filtered")
    chosen = share(filtered, max_images // FILTERED_SHARE)
    chosen += share(ok, max_images - len(chosen))
    rows = by_key((row.group, row.row) for row in chosen)
    return {group: sorted(numbers) for group, numbers in rows.items()}


def _frames_of(
    storage: Storage,
    router: Router,
    group: RowGroup,
    rows: Sequence[int],
    draw: Callable[[Sequence[Mapping[str, Any]], Sequence[str]], Iterator[Thumbnails]],
) -> list[Frame]:
    """The frames of these rows, in ascending order. `draw` gives the thumbnails of records with kept images.

    The group is read up to the last of them, a few rows at a time, and only thumbnails stay in memory.
    """
    frames: list[Frame] = []
    num_rows = min(ROWS_AT_ONCE, rows[-1] + 1)
    for first, batch in _read_batches(storage, group, [*group.columns, *group.image_columns], num_rows):
        in_batch = [row - first for row in rows if first <= row < first + batch.num_rows]
        records = _records(batch.take(pa.array(in_batch, pa.int64())))
        for row, record, thumbnails in zip(in_batch, records, draw(records, group.kept_images), strict=True):
            route = router.resolve(record["task"], record["model"])
            steps = chain_steps(route, record, thumbnails.steps)
            location = _location(group, first + row)
            frame = _frame(record, thumbnails, steps, location, images=group.image_columns)
            frames.append(replace(frame, line=row_line(route, record)))
        if first + batch.num_rows > rows[-1]:
            break
    return frames


def _records(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch, each as its values by column."""
    names, columns = batch.schema.names, map(_values, batch.columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(array: pa.Array) -> list[Any]:
    """The values as Python objects, or as texts: kept columns may have dates that Python cannot represent."""
    try:
        return list(array.to_pylist())
    except (OverflowError, ValueError):
        in_utc = array.cast(pa.timestamp(array.type.unit)) if pa.types.is_timestamp(array.type) else array
        return list(in_utc.cast(pa.string()).to_pylist())


def _read_batches(
    storage: Storage, group: RowGroup, columns: Sequence[str], num_rows: int
) -> Iterator[tuple[int, Any]]:
    """(position of the first row, batch) for the batches of a row group, each read when it is asked for."""
    with (
        parquet_errors_as(RefusedError, f"{group.uri} cannot be read"),
        storage.open(group.uri) as file,
        # With its defaults pyarrow 26 reads whole column chunks, however few rows are used.
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


def _frame(
    record: Mapping[str, Any],
    thumbnails: Thumbnails,
    steps: tuple[ChainStep, ...],
    location: str,
    *,
    images: Collection[str],
) -> Frame:
    """The frame of an output row; `images` are the columns that are not shown as text."""
    # The text of an image would be all of its bytes.
    texts = {name: text(value) for name, value in record.items() if value is not None and name not in images}
    return Frame(
        row_id=id_text(record["row_id"]),
        image_index=record["image_index"] or 0,
        task=texts.get("task", ""),
        model=texts.get("model", ""),
        status=texts.get("status", ""),
        prompt=texts.get("prompt", ""),
        negative_prompt=texts.get("negative_prompt", ""),
        seed=texts.get("seed", ""),
        width=record["width"],
        height=record["height"],
        parameters={name: texts[name] for name in PARAMETERS if name in texts and name not in OWN_COLUMNS},
        keep={name: value for name, value in texts.items() if name not in {*OWN_COLUMNS, *PARAMETERS}},
        thumbnail=thumbnails.thumbnail,
        depth=thumbnails.depth,
        problem=thumbnails.problem,
        steps=steps,
        kept_images=thumbnails.kept,
        place=location,
        line="",
    )


def sample_failures(storage: Storage, footers: Sequence[PartFooter]) -> list[Failure]:
    """At most MAX_FAILURES failed rows, chosen evenly over the error codes.

    Only parts whose footers count failed rows are read.
    """
    with_code = by_key((code, i) for i, footer in enumerate(footers) for code in footer.error_codes)
    chosen = sorted(set(share(with_code, MAX_FAILED_PARTS)))
    if not chosen:
        return []
    num_failed = sum(sum(footer.error_codes.values()) for footer in footers)
    per_code = MAX_FAILURES if num_failed <= MAX_FAILURES else -(-MAX_FAILURES // len(chosen))
    with ThreadPoolExecutor(FAILED_PARTS_AT_ONCE) as pool:
        by_part = pool.map(lambda i: list(_failures_of(storage, footers[i], per_code)), chosen)
        by_code = by_key((failure.error_code, failure) for failures in by_part for failure in failures)
    return share(by_code, MAX_FAILURES)


def _failures_of(storage: Storage, footer: PartFooter, per_code: int) -> Iterator[Failure]:
    """A part's first `per_code` failed rows of every code; reading stops with the last of them."""
    missing = {code: min(per_code, num_rows) for code, num_rows in footer.error_codes.items()}
    for group in (group for group in footer.groups if group.has_failures):
        columns = [*FAILURE_COLUMNS, *filter(is_sweep_column, group.columns)]
        for first, batch in _read_batches(storage, group, columns, MAX_ROWS_PER_GROUP):
            for row, record in enumerate(batch.to_pylist(), first):
                if record["status"] == "failed" and missing.get(record["error_code"], 0):
                    missing[record["error_code"]] -= 1
                    yield _failure(record, _location(group, row))
            if not any(missing.values()):
                return


def _failure(record: Mapping[str, Any], location: str) -> Failure:
    texts = {name: text(value, FAILURE_TEXT) for name, value in record.items() if value is not None}
    texts["row_id"] = id_text(record["row_id"], FAILURE_TEXT)
    columns = (name for name in FAILURE_COLUMNS if name != "status")
    keep = {
        name: text(value) for name, value in record.items() if is_sweep_column(name) and value is not None
    }
    return Failure(**{name: texts.get(name, "") for name in columns}, place=location, keep=keep)


def _location(group: RowGroup, row: int) -> str:
    """The part's file name and the row in it, for a row of a group."""
    return f"{group.uri.rpartition('/')[2]}, row {group.first_row + row}"
