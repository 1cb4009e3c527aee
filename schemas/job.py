"""What the driver decides once and every worker is told: the job, its models, its input, its shards."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from schemas.columns.input_columns import ColumnMap
from schemas.output_layout import shard_name
from schemas.spec.job_spec import JobSpec, ModelSpec
from schemas.systems.model_card import ModelCard

NO_MODEL = ""
"""Rows that no model can take (an unknown task, say) form shards of their own under this name."""

StoredCount = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of things, where it is read back from an output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """One Parquet file of the input: the plan's one line for it."""

    uri: str
    size_bytes: StoredCount
    etag: str
    """The store's fingerprint of its content; a worker that meets another one stops the job."""
    num_rows: StoredCount
    rows_by_model: Mapping[str, StoredCount]
    """Rows routed to each model; NO_MODEL for rows that none can take."""
    repeated: Mapping[str, Sequence[StoredCount]] = field(default_factory=dict)
    """By model, which of its rows here, counted from 0, have the id of an earlier row of the input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that a worker must know beside a shard's few numbers."""

    spec: JobSpec
    models: Mapping[str, ModelCard]
    columns: ColumnMap
    schema: bytes
    """The output's Arrow schema, serialised."""

    @property
    def checkpoints(self) -> dict[str, ModelSpec]:
        """The models as workers load them: from where the driver found them, of the Hub the same commit."""
        return {
            # A folder has no revision; nobody asks for its digest.
            name: self.spec.models[name].model_copy(
                update={"checkpoint": card.checkpoint, "revision": card.revision}
            )
            for name, card in self.models.items()
        }

    @property
    def fingerprint(self) -> str:
        """Equal for two jobs exactly when their parts must be equal byte for byte."""
        return fingerprint_of(self.identity())

    def identity(self) -> dict[str, Any]:
        """What makes the output: the spec without where it goes, who makes it and what may fail."""
        spec = self.spec.model_dump(mode="json", exclude={"workers", "errors"})
        spec["output"].pop("path")
        return {
            "spec": spec,
            "columns": dict(self.columns.fields),
            "models": {name: card.revision for name, card in self.models.items()},
        }


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """The fingerprint of the job with this identity."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Which rows make one part: a range of those rows of one file that go to one model."""

    index: int
    """Place among all shards of the job."""
    num_shards: int
    uri: str
    """The input file."""
    etag: str
    """What the file's content was when the job was planned."""
    model: str
    """A key of the spec's models, or NO_MODEL."""
    start: int
    """First row, counted among this file's rows of this model."""
    stop: int
    """One past the last row."""
    file_name: str = ""
    """What this file's rows are named after where they have no ids."""
    repeated: tuple[int, ...] = ()
    """Rows that have an earlier row's id, by their place in the shard: recorded as failed, and not made."""
    skip: tuple[int, ...] = ()
    """Rows that take their worker down, by their place in the shard: recorded as failed, and not made."""
    rehearse: tuple[int, int] | None = None
    """From which row to before which one: only these are made, and no part is written."""
    again: tuple[str, ...] | None = None
    """Of a part that is there, rows that failed with one of these codes are made again, with none given all
    that failed; None: the whole part is made, where there is none."""

    @property
    def name(self) -> str:
        """The part's name without its ending; the order of names is the order of shards."""
        return shard_name(self.index, self.num_shards)

    @property
    def num_rows(self) -> int:
        """Input rows in this shard."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRows:
    """Rows that failed for one reason."""

    num_rows: int
    message: str
    """The first one's."""


def merge_failed_rows(failures: Iterable[Mapping[str, FailedRows]]) -> dict[str, FailedRows]:
    """All of them, by error_code."""
    every: dict[str, FailedRows] = {}
    for each in failures:
        for code, more in each.items():
            known = every.get(code, FailedRows(num_rows=0, message=more.message))
            every[code] = FailedRows(num_rows=known.num_rows + more.num_rows, message=known.message)
    return every


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSnapshot:
    """What has come so far of a shard that is not committed."""

    images: int = 0
    unforeseen: Mapping[str, FailedRows] = field(default_factory=dict)
    """By error_code, rows that failed though the plan found nothing wrong with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProgress:
    """What a worker answers while it is at work."""

    unfinished: Mapping[int, ShardSnapshot]
    """By the shard's index."""
    heartbeats: int
    """Steps of any kind since it started, such as rows read and batches run: it stands still when the work
    does."""
    leaving: bool
    """Whether its process was asked to end; it takes up no more shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What became of one shard: the worker's answer to the driver, counts and seconds only."""

    index: int
    committed: bool
    """False: the same part was there already, made by another attempt or driver; or it was a rehearsal."""
    ok: int
    filtered: int
    failed: int
    """Input rows by outcome."""
    images: int
    """Pictures in the part."""
    size_bytes: int
    """Of the part."""
    error_codes: Mapping[str, int]
    """Failed rows by error_code."""
    unforeseen: Mapping[str, FailedRows]
    """Of these, the rows with which the plan had found nothing wrong."""
    seconds: Mapping[str, float]
    """Read, wait for the device, generate, write."""
    models_loaded: tuple[str, ...]
    """Models in the worker's memory now: the dispatcher gives it shards of these first."""
    num_loads: int
    """Checkpoints this worker has loaded in its life."""
    worker: str
    """Host and process."""
    cpu_seconds: float
    """Of the worker's process, all threads, since it started."""
    peak_rss_bytes: int
    """The worker's largest memory so far."""
