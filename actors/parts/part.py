"""A part: one shard's outcomes as one Parquet file, with every row in its place."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.parts.commit import PartIdentity
from actors.rows.adapters.embedding_checks import learned_tokens_in
from actors.rows.routing import Unroutable
from actors.rows.row import Row
from schemas import __version__
from schemas.errors import RowError
from schemas.job import Job, revisions_of
from schemas.output_layout import COUNTS_KEY, ERROR_CODES_KEY, MODELS_KEY, VERSIONS_KEY
from schemas.systems.adapter_weights import parse_weights
from schemas.systems.control_parameters import controls_of
from schemas.systems.image_prompts import image_prompt_of

ROW_GROUP_BYTES = 64 << 20
"""The size from which a row group is full. Viewers read a whole group to show a page of rows; they stop at
100 MB."""
_IMAGE_LEAVES = ("image.bytes", "depth.bytes", "step_images.list.element.bytes")
_WRITER_OPTIONS: dict[str, Any] = {
    # The Hub writes its own files like this: pages of images line up between versions, and readers can skip.
    "use_content_defined_chunking": {
        "min_chunk_size": 256 * 1024,
        "max_chunk_size": 1024 * 1024,
        "norm_level": 0,
    },
    "write_page_index": True,
    # Without checksums 392 of 400 flipped bits went unnoticed; with them none that did harm.
    "write_page_checksum": True,
    "store_schema": True,
}
Record = dict[str, Any]
"""A row of the output: its values by column. The value of a kept column is an array of length one."""
LIBRARIES = ("diffusers", "torch", "transformers", "pyarrow", "pillow", "imagecodecs")
"""The libraries whose versions are in a part's footer: another version may change the part's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An encoded image or depth map."""

    data: bytes
    path: str
    """The file's name inside the part, or, for an object of its own, its path below the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedImage:
    """One image of a row, ready to be stored."""

    image_index: int
    image: StoredImage | None
    """The image; None if a safety checker withheld it."""
    depth: StoredImage | None = None
    """The depth map, a 16-bit PNG, if the system gives one."""
    steps: tuple[StoredImage, ...] = ()
    """The images of the chain's earlier steps, if the route keeps them."""
    width: int | None
    height: int | None
    nsfw: bool | None


@dataclass(slots=True)
class RowOutcome:
    """What is known so far of one row: its images, or its first problem, with which the whole row fails."""

    row: Row
    images: list[FinishedImage] = field(default_factory=list)
    truncated: Mapping[str, str] = field(default_factory=dict)
    """The end of each text that was cut off and not read, by text field."""
    problem: RowError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An encoded part that is not written anywhere yet."""

    data: bytes
    error_codes: Mapping[str, int]
    """The number of failed rows by error code."""
    made: Mapping[str, int]
    """Input rows that are ok, filtered and failed, and their images, without rows that stay unchanged."""


def build_part(
    outcomes: Sequence[RowOutcome],
    schema: pa.Schema,
    identity: PartIdentity,
    *,
    embed_images: bool,
    footer: Mapping[bytes, str],
    unchanged: Mapping[int, Sequence[Record]] | None = None,
) -> Part:
    """A shard's rows encoded as a part. Its bytes depend on the arguments alone.

    `unchanged`: the records of rows that stay as an earlier part has them, by position in the shard. They
    count instead of the rows' outcomes.
    """
    unchanged = unchanged or {}
    made = [
        [*_records(outcome, schema, embed_images)]
        for outcome in outcomes
        if outcome.row.index not in unchanged
    ]
    fresh = iter(made)
    rows = [unchanged.get(outcome.row.index) or next(fresh) for outcome in outcomes]
    error_codes = Counter(row[0]["error_code"] for row in rows if row[0]["status"] == "failed")
    metadata = {
        **(schema.metadata or {}),
        **identity.footer(),
        COUNTS_KEY: json.dumps(_counts(rows)).encode(),
        ERROR_CODES_KEY: json.dumps(dict(sorted(error_codes.items()))).encode(),
        **{key: value.encode() for key, value in footer.items()},
    }
    data = _write([record for row in rows for record in row], schema.with_metadata(metadata))
    return Part(data=data, error_codes=dict(error_codes), made=_counts(made))


def _counts(rows: Sequence[Sequence[Record]]) -> dict[str, int]:
    """The number of input rows by status (ok, filtered, failed), and of their images."""
    counts = Counter({"ok": 0, "filtered": 0, "failed": 0})
    counts.update(map(_status, rows))
    return {**counts, "images": sum(record["image"] is not None for row in rows for record in row)}


def _status(row: Sequence[Record]) -> str:
    """The status of an input row, from the records of its images."""
    return next((record["status"] for record in row if record["status"] != "ok"), "ok")


def _records(outcome: RowOutcome, schema: pa.Schema, embed_images: bool) -> Iterator[Record]:
    """One record for each image of a row. A failed row has one record, without an image."""
    row, problem = outcome.row, outcome.problem
    common = {
        "row_id": row.row_id,
        "task": row.route.name,
        "model": row.route.model or None,
        **row.texts,
        **{f"{name}_truncated": cut for name, cut in outcome.truncated.items()},
        **_parameters(row),
        **{name: value.cast(schema.field(name).type) for name, value in row.keep.items()},
    }
    if problem:
        yield common | {
            "image_index": 0,
            "seed": row.seed,
            "status": "failed",
            "error_code": problem.code,
            "error_message": problem.message,
            "image": None,
            # There is no image, so the size that the row asks for must not appear here.
            "width": None,
            "height": None,
        }
        return
    for image in sorted(outcome.images, key=lambda image: image.image_index):
        yield common | {
            "image_index": image.image_index,
            "seed": row.seed + image.image_index,
            "nsfw": image.nsfw,
            "status": "filtered" if image.nsfw else "ok",
            "width": image.width,
            "height": image.height,
            "image": _struct(image.image, embed_images),
            "image_sha256": _sha256(image.image),
            "depth": _struct(image.depth, embed_images),
            "depth_sha256": _sha256(image.depth),
            "step_images": [_struct(step, embed_images) for step in image.steps] or None,
        }


def _parameters(row: Row) -> Record:
    """The values of the row's parameters as columns have them: adapters with the hashes of their files."""
    if isinstance(row.route, Unroutable):
        return {**row.parameters}
    loras, nets = row.route.loras, row.route.controlnets
    record: Record = {**row.parameters}
    if prompt := image_prompt_of(row.parameters):
        record["ip_adapter_sha256"] = row.route.ip_adapters[prompt.ip_adapter].file.sha256
    if (weights := row.parameters.get("loras")) is not None:
        record["loras"] = [
            {"name": name, "weight": weight, "sha256": loras[name].sha256}
            for name, weight in parse_weights(str(weights)).items()
        ]
    if "controls" in row.parameters:
        record["controls"] = [
            asdict(control) | {"sha256": nets[control.controlnet].sha256}
            for control in controls_of(row.parameters)
        ]
    if row.route.embeddings and row.route.system.takes_embeddings and row.problem is None:
        texts, learned = (row.texts[field] for field in row.route.system.texts), row.route.embeddings
        record["embeddings"] = [
            {"name": token, "sha256": learned[token].sha256} for token in learned_tokens_in(texts, learned)
        ]
    return record


def _struct(stored: StoredImage | None, embed_images: bool) -> dict[str, Any] | None:
    if stored is None:
        return None
    return {"bytes": stored.data if embed_images else None, "path": stored.path}


def _sha256(stored: StoredImage | None) -> str | None:
    return None if stored is None else hashlib.sha256(stored.data).hexdigest()


def _write(records: list[Record], schema: pa.Schema) -> bytes:
    file = io.BytesIO()
    leaves = _leaves(schema)
    options = _WRITER_OPTIONS | {
        # Images are compressed already, and no two of them are equal.
        "compression": {leaf: "none" if leaf in _IMAGE_LEAVES else "snappy" for leaf in leaves},
        "use_dictionary": [leaf for leaf in leaves if leaf not in _IMAGE_LEAVES],
    }
    with pq.ParquetWriter(file, schema, **options) as writer:
        for group in _row_groups(records):
            columns = [_column([record.get(field.name) for record in group], field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(group))
    return file.getvalue()


def _column(values: Sequence[Any], arrow_type: pa.DataType) -> pa.Array:
    """A column of the output, from Python values, or from arrays of one value each for a kept column."""
    if not any(isinstance(value, pa.Array) for value in values):
        return pa.array(values, arrow_type)
    return pa.concat_arrays([pa.nulls(1, arrow_type) if value is None else value for value in values])


def _leaves(schema: pa.Schema) -> list[str]:
    """Parquet's names of the leaves, which pyarrow 26 tells only for a file.

    All must be named: it leaves a column uncompressed that a compression dict lacks.
    """
    file = io.BytesIO()
    pq.write_table(schema.empty_table(), file)
    leaves = pq.read_metadata(file).schema
    return [leaves.column(index).path for index in range(len(leaves.names))]


def _row_groups(records: list[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    size = 0
    for record in records:
        stored_images = (record.get("image"), record.get("depth"), *(record.get("step_images") or ()))
        size += sum(len(stored["bytes"] or b"") for stored in stored_images if stored)
        size += sum(value.nbytes for value in record.values() if isinstance(value, pa.Array))
        group.append(record)
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group or not records:
        yield group


def job_footer(job: Job) -> dict[bytes, str]:
    """The footer's entries that are the same in every part of the job."""
    return {
        MODELS_KEY: json.dumps(revisions_of(job.models)),
        VERSIONS_KEY: json.dumps({"darkroom": __version__} | {name: version(name) for name in LIBRARIES}),
    }
