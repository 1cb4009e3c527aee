"""One attempt at a shard: its rows are read, generated, encoded, and committed as one part."""

import logging
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from actors.engine.engine import DeviceUse, Engine, Generated
from actors.images.image_uris import ImageUris
from actors.images.spool import Spool
from actors.parts.commit import PartIdentity, commit_part, replace_failures
from actors.parts.image_writer import ImageWriter
from actors.parts.part import FinishedImage, Part, Record, RowOutcome, build_part
from actors.parts.unchanged_rows import unchanged_records
from actors.process import peak_rss_bytes
from actors.rows.opened_rows import OpenedRow, open_row
from actors.rows.routing import size_limits
from actors.rows.row import Row
from actors.rows.shard_reader import ShardReader
from actors.speeds import speeds_of
from actors.storage.output import Output
from schemas.errors import DEVICE_DEPENDENT, ReclaimedError, RefusedError, RowError
from schemas.job import FailedRows, Job, Shard, ShardReport, ShardSnapshot, Speed, merge_failed_rows

logger = logging.getLogger(__name__)

_Failure = tuple[RowOutcome, RowError]
"""A row and its problem."""

MAX_WAITING_BYTES = 256 << 20
"""The most bytes of pixels that wait to be encoded. Pixels take five times the bytes of encoded images."""


class Pulse:
    """Whether a worker makes progress, and whether it was told to end. Several threads read and write it."""

    def __init__(self) -> None:
        self.heartbeats = 0
        self.leaving = False

    def beat(self) -> None:
        """Count a step of any kind."""
        # Steps of two threads at the same moment may count as one: only a change of the number matters.
        self.heartbeats += 1

    def refuse_if_leaving(self, shard: Shard) -> None:
        """Raise ReclaimedError if the worker was told to end."""
        if self.leaving:
            raise ReclaimedError(f"{shard.name} is left to another worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What all shards of one worker share."""

    job: Job
    engine: Engine
    output: Output
    reader: ShardReader
    uris: ImageUris
    schema: pa.Schema
    """The parts' schema."""
    footer: Mapping[bytes, str]
    """The entries of a part's footer that all parts of the job have."""
    pulse: Pulse
    device: ThreadPoolExecutor
    """One thread, because a CUDA context, a scheduler and a model cache need a single caller."""
    decoders: ThreadPoolExecutor
    encoders: ThreadPoolExecutor


_PHASES = {"": "reading rows", "read": "waiting for the device", "wait": "generating", "generate": "encoding"}
"""What goes on after each lap of a shard's clock, in words for people."""


class ShardRun:
    """One attempt to turn a shard into a part."""

    def __init__(self, shard: Shard, resources: Resources) -> None:
        self._shard = shard
        self._resources = resources
        self._job = resources.job
        self._images = ImageWriter(shard, resources.job.spec.output, resources.output)
        self._outcomes: list[RowOutcome] = []
        self._unchanged: Mapping[int, list[Record]] = {}
        """The records of rows that stay as the replaced part has them, by position in the shard."""
        self._clock = _StageClock()
        self._speeds: tuple[Speed, ...] = ()
        self._use = DeviceUse()
        """What the device had done when the shard's images were generated."""
        self.progress = _ShardProgress()

    @property
    def phase(self) -> str:
        """What is going on with the shard, in words for people. Any thread may ask."""
        return _PHASES.get(self._clock.last_lap, "")

    def run(self) -> ShardReport:
        """Read, generate, encode, commit. Only a rehearsal returns without a stored part."""
        self._resources.pulse.refuse_if_leaving(self._shard)
        replaced = None if self._shard.again is None else self._read_committed_part()
        opened = self._read_rows(replaced)
        self._clock.lap("read")
        encodings = self._resources.device.submit(self._generate, opened).result()
        part = self._build_part(encodings)
        committed = self._shard.rehearse is None and self._commit(part, replaced)
        self._clock.lap("write")
        return self._report(part, committed=committed)

    def _read_committed_part(self) -> "_CommittedPart":
        output, uri = self._resources.output, self._resources.output.part_uri(self._shard.name)
        stored = output.storage.stat(uri)
        if stored is None:
            raise RefusedError(f"{uri}, of which rows are to be generated again, is gone")
        return _CommittedPart(uri=uri, etag=stored.etag)

    def _read_rows(self, replaced: "_CommittedPart | None") -> list[OpenedRow]:
        """The rows that are to be generated, with their images opened; every row gets its outcome."""
        shard, spool = self._shard, Spool()
        rows = self._resources.reader.read(shard, spool)
        self._resources.pulse.beat()
        if replaced:
            keep = self._job.columns.keep
            # Where it is another part by now, it will not be replaced.
            with self._resources.output.storage.open(replaced.uri) as part:
                self._unchanged = unchanged_records(part, rows, shard.again or (), keep)
        first, end = shard.rehearse or (0, shard.num_rows)
        self._outcomes = [
            RowOutcome(row, problem=row.problem or _known_problem(row, shard)) for row in rows[first:end]
        ]
        to_generate = [
            outcome
            for outcome in self._outcomes
            if not outcome.problem and outcome.row.index not in self._unchanged
        ]
        return self._open_rows(to_generate, spool)

    def _open_rows(self, outcomes: list[RowOutcome], spool: Spool) -> list[OpenedRow]:
        """The rows whose images could be opened. For each other row, its problem becomes its outcome."""
        opened = []
        results = self._resources.decoders.map(self._row_opener(spool), outcomes)
        for outcome, result in zip(outcomes, results, strict=True):
            if isinstance(result, RowError):
                outcome.problem = result
                self.progress.count_failed(result)
            else:
                opened.append(result)
        return opened

    def _row_opener(self, spool: Spool) -> Callable[[RowOutcome], OpenedRow | RowError]:
        """A function that opens a row's images, for the threads of `decoders`."""
        read, limits = self._resources.uris.reader(beside=self._shard.uri), size_limits(self._job.spec)

        def try_to_open(outcome: RowOutcome) -> OpenedRow | RowError:
            self._resources.pulse.beat()
            try:
                return open_row(
                    outcome.row,
                    lambda uri: spool.add(read(uri)),
                    limits=limits,
                    vae_factor=self._job.models[outcome.row.route.model].vae_factor,
                )
            except RowError as problem:
                return problem

        return try_to_open

    def _generate(self, opened: list[OpenedRow]) -> list[Future[_Failure | None]]:
        """Generate all images, on the device's thread; returns their encodings, some of which still run."""
        self._clock.lap("wait")
        pulse = self._resources.pulse
        pulse.refuse_if_leaving(self._shard)
        backlog = _EncodingBacklog()
        by_index = {outcome.row.index: outcome for outcome in self._outcomes}
        earlier = self._resources.engine.use.seconds
        for generated in self._resources.engine.generate(opened, self._resources.decoders):
            pulse.beat()
            outcome = by_index[generated.sample.opened.row.index]
            outcome.truncated = generated.sample.truncated
            if generated.problem:
                self._fail(outcome, generated.problem)
                continue
            encoding = self._resources.encoders.submit(self._encode, outcome, generated)
            backlog.add(encoding, _size_bytes(generated))
            self.progress.images += 1
        self._use = self._resources.engine.use
        self._speeds = tuple(speeds_of(opened, self._use, earlier, self._job))
        self._clock.lap("generate")
        return backlog.encodings

    def _encode(self, outcome: RowOutcome, generated: Generated) -> _Failure | None:
        """Encode one image with its depth map and the images of its steps, on an encoder's thread.

        Returns the row and its problem if they cannot be encoded.
        """
        self._resources.pulse.beat()
        try:
            outcome.images.append(self._finished(outcome, generated))
        except RowError as problem:
            return outcome, problem
        return None

    def _finished(self, outcome: RowOutcome, generated: Generated) -> FinishedImage:
        sample, pixels, depth = generated.sample, generated.pixels, generated.depth
        name, row_id = f"{outcome.row.index:06d}-{sample.image_index}", outcome.row.row_id
        return FinishedImage(
            image_index=sample.image_index,
            image=None if pixels is None else self._images.write(name, row_id, pixels),
            depth=None if depth is None else self._images.write_depth(f"{name}-depth", row_id, depth),
            steps=tuple(
                self._images.write(f"{name}-step{step}", row_id, image)
                for step, image in enumerate(sample.step_images)
            ),
            width=None if pixels is None else pixels.shape[1],
            height=None if pixels is None else pixels.shape[0],
            nsfw=generated.nsfw,
        )

    def _fail(self, outcome: RowOutcome, problem: RowError) -> None:
        """Record a row's problem, if it is its first."""
        if not outcome.problem:
            outcome.problem = problem
            self.progress.count_failed(problem)

    @property
    def _identity(self) -> PartIdentity:
        return PartIdentity(job=self._job.fingerprint, shard=self._shard.name)

    def _build_part(self, encodings: list[Future[_Failure | None]]) -> Part:
        for encoding in encodings:
            if failed := encoding.result():
                self._fail(*failed)
        return build_part(
            self._outcomes,
            self._resources.schema,
            self._identity,
            embed_images=self._job.spec.output.images == "parquet",
            footer=self._resources.footer,
            unchanged=self._unchanged,
        )

    def _commit(self, part: Part, replaced: "_CommittedPart | None") -> bool:
        storage, uri = self._resources.output.storage, self._resources.output.part_uri(self._shard.name)
        identity, attempt = self._identity, uuid.uuid4().hex
        etag = None if replaced is None else replaced.etag
        if commit_part(storage, uri, part.data, identity, attempt=attempt, replaces=etag):
            return True
        if replaced or DEVICE_DEPENDENT & part.error_codes.keys():
            return False
        return replace_failures(storage, uri, part.data, identity, attempt=attempt)

    def _report(self, part: Part, *, committed: bool) -> ShardReport:
        logger.info(
            "shard=%s committed=%s made=%s seconds=%s",
            *(self._shard.name, committed, part.made, self._clock.seconds),
        )
        return ShardReport(
            index=self._shard.index,
            committed=committed,
            ok=part.made["ok"],
            filtered=part.made["filtered"],
            failed=part.made["failed"],
            images=part.made["images"],
            size_bytes=len(part.data),
            failures=merge_failed_rows(
                {outcome.problem.code: FailedRows(num_rows=1, message=outcome.problem.message)}
                for outcome in self._outcomes
                if outcome.problem and outcome.row.index not in self._unchanged
            ),
            unforeseen=self.progress.snapshot().unforeseen,
            seconds=self._clock.seconds,
            models_loaded=self._resources.engine.models_loaded,
            num_loads=self._resources.engine.num_loads,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            cpu_seconds=time.process_time(),
            peak_rss_bytes=peak_rss_bytes(),
            peak_device_bytes=self._use.peak_bytes,
            speeds=self._speeds,
            load_seconds={model: each.loading for model, each in self._use.seconds.items()},
        )


def _known_problem(row: Row, shard: Shard) -> RowError | None:
    """A problem of a row that only the driver knows: the row repeats an id, or kills its worker."""
    if row.index in shard.repeated:
        return RowError("duplicate_row_id", "an earlier row of the input has the same id")
    if row.index in shard.skip:
        return RowError(
            "worker_crash",
            "generating this row takes its worker process down, even when it is generated alone; "
            "the rest of its shard was generated without it",
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _CommittedPart:
    """A stored part, some rows of which are generated again."""

    uri: str
    etag: str


class _ShardProgress:
    """The counts of a shard so far. One thread writes them, others read them."""

    def __init__(self) -> None:
        self.images = 0
        self._unforeseen: dict[str, FailedRows] = {}

    def count_failed(self, problem: RowError) -> None:
        """Count a row that failed although the plan found nothing wrong with it."""
        failed = {problem.code: FailedRows(num_rows=1, message=problem.message)}
        self._unforeseen = merge_failed_rows([self._unforeseen, failed])

    def snapshot(self) -> ShardSnapshot:
        """The counts at this moment."""
        return ShardSnapshot(images=self.images, unforeseen=self._unforeseen)


class _EncodingBacklog:
    """The encodings of a shard. `add` blocks while too many bytes of pixels wait to be encoded."""

    def __init__(self) -> None:
        self.encodings: list[Future[_Failure | None]] = []
        self._waiting: deque[tuple[Future[_Failure | None], int]] = deque()
        self._size_bytes = 0

    def add(self, encoding: Future[_Failure | None], size_bytes: int) -> None:
        self.encodings.append(encoding)
        self._waiting.append((encoding, size_bytes))
        self._size_bytes += size_bytes
        while self._size_bytes > MAX_WAITING_BYTES:
            oldest, size = self._waiting.popleft()
            oldest.result()
            self._size_bytes -= size


def _size_bytes(generated: Generated) -> int:
    images = (generated.pixels, generated.depth, *generated.sample.step_images)
    return sum(image.nbytes for image in images if image is not None)


class _StageClock:
    """The seconds that one shard spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last_lap = ""
        self._begun = time.monotonic()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap as this stage's."""
        now = time.monotonic()
        self.seconds[stage] = round(now - self._begun, 4)
        self._begun, self.last_lap = now, stage
