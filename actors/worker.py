"""What a Ray actor does: turn one shard of input rows into one part of output rows.

Shards overlap here. While one is on the device, the next is being read and its pictures' headers checked,
and the pictures of the one before are being encoded and written: three threads of calls to `run`, of
which one at a time holds the device.
"""

import hashlib
import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from actors.engine.engine import Engine, Generated
from actors.images.encoding import MEDIA_ENDINGS, Depth, Pixels, encode
from actors.images.image_uris import ImageUris
from actors.images.input_images import EncodedImage
from actors.images.spool import Shelf
from actors.making import Making
from actors.parts.commit import commit_part
from actors.parts.part import (
    FinishedImage,
    Part,
    Record,
    RowOutcome,
    StoredImage,
    build_part,
    job_footer,
    part_uri,
)
from actors.parts.unchanged_rows import kept_rows
from actors.process import peak_rss_bytes
from actors.rows.opened_rows import OpenedRow, open_images
from actors.rows.row import Row
from actors.rows.shard_reader import ShardReader
from actors.storage.objects import Storage
from actors.storage.stores import Stores
from actors.storage.uris import join, normalise
from schemas.errors import ReclaimedError, RefusedError, RowError
from schemas.job import Job, Shard, ShardReport, WorkerProgress

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 256 << 20
"""Of pixels made and not yet encoded: they are five times their encoding, and must not pile up behind it."""


class Worker:
    """One process, one device, one set of components. Safe to call from several threads."""

    def __init__(
        self,
        job: Job,
        *,
        engine: Engine,
        stores: Stores,
        output: Storage,
        num_threads: int,
    ) -> None:
        self._job = job
        self._engine = engine
        self._output = output
        self._reader = ShardReader(job, stores)
        self._uris = ImageUris(stores, job.spec.input.pictures)
        self._schema = pa.ipc.read_schema(pa.py_buffer(job.schema))
        self._footer = job_footer(job)
        self._reading = threading.Lock()
        # One thread for the device: a CUDA context, a scheduler and a model cache want one caller.
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._decoders = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self._encoders = ThreadPoolExecutor(num_threads, thread_name_prefix="encode")
        self._in_making: dict[int, Making] = {}
        self._beats = 0
        self._leaving = False

    def run(self, shard: Shard) -> ShardReport:
        """Read, generate, encode, write; the part is there when this returns, unless this is a rehearsal."""
        clock = _Clock()
        making = self._in_making[shard.index] = Making()
        try:
            self._refuse_if_leaving(shard)
            before = None if shard.again is None else self._part_there(shard)
            outcomes, opened, kept = self._read(shard, before, making)
            clock.lap("read")
            encodings = self._device.submit(self._generate, clock, shard, outcomes, opened, making).result()
            part = self._assemble(shard, outcomes, encodings, kept)
            committed = shard.rehearse is None and self._commit(shard, part, before)
            clock.lap("write")
        finally:
            del self._in_making[shard.index]
        logger.info(
            "shard=%s committed=%s counts=%s images=%d seconds=%s",
            *(shard.name, committed, part.counts, part.images, clock.seconds),
        )
        return ShardReport(
            index=shard.index,
            committed=committed,
            ok=part.counts["ok"],
            filtered=part.counts["filtered"],
            failed=part.counts["failed"],
            images=part.images,
            size_bytes=len(part.data),
            error_codes=part.error_codes,
            unforeseen=making.told().unforeseen,
            seconds=clock.seconds,
            models_loaded=self._engine.models_loaded,
            num_loads=self._engine.num_loads,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            cpu_seconds=time.process_time(),
            peak_rss_bytes=peak_rss_bytes(),
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give threads and the open input file back."""
        for threads in (self._device, self._decoders, self._encoders):
            threads.shutdown()
        self._reader.close()

    def progress(self) -> WorkerProgress:
        """How far it is; answered while `run` is at work."""
        return WorkerProgress(
            in_making={index: making.told() for index, making in [*self._in_making.items()]},
            beats=self._beats + self._engine.num_batches,
            leaving=self._leaving,
        )

    def leave(self) -> None:
        """Finish the shard that is on the device and take up no other one."""
        self._leaving = True

    def _refuse_if_leaving(self, shard: Shard) -> None:
        if self._leaving:
            raise ReclaimedError(f"{shard.name} is left to another worker")

    def _part_there(self, shard: Shard) -> "_PartThere":
        uri = part_uri(self._job, shard)
        stored = self._output.stat(uri)
        if stored is None:
            raise RefusedError(f"{uri}, of which rows are to be made again, is gone")
        return _PartThere(etag=stored.etag, data=self._output.read(uri))

    def _read(
        self, shard: Shard, before: "_PartThere | None", making: Making
    ) -> tuple[list[RowOutcome], list[OpenedRow], Mapping[int, list[Record]]]:
        """The shard's rows, those that are to be made, and those that stay as they are."""
        shelf = Shelf()
        with self._reading:
            rows = self._reader.read(shard, shelf)
        self._beat()
        carried = self._job.columns.keep
        kept = kept_rows(before.data, rows, shard.again or (), carried) if before else {}
        first, end = shard.rehearse or (0, shard.num_rows)
        outcomes = [
            RowOutcome(row, problem=row.problem or _known_problem(row, shard)) for row in rows[first:end]
        ]
        fit = [outcome for outcome in outcomes if not outcome.problem and outcome.row.index not in kept]
        opened = []
        for outcome, pictures in zip(fit, self._decoders.map(self._open(shard, shelf), fit), strict=True):
            if isinstance(pictures, RowError):
                outcome.problem = pictures
                making.failed(pictures)
            else:
                opened.append(OpenedRow(row=outcome.row, images=pictures))
        return outcomes, opened, kept

    def _open(
        self, shard: Shard, shelf: Shelf
    ) -> Callable[[RowOutcome], "dict[str, EncodedImage] | RowError"]:
        read = self._uris.reader(beside=shard.uri)

        def open_row(outcome: RowOutcome) -> "dict[str, EncodedImage] | RowError":
            self._beat()
            card = self._job.models[outcome.row.routed.model]
            try:
                return open_images(
                    outcome.row,
                    lambda uri: shelf.hold(read(uri)),
                    max_pixels=self._job.spec.input.max_pixels,
                    vae_factor=card.vae_factor,
                )
            except RowError as problem:
                return problem

        return open_row

    def _generate(
        self,
        clock: "_Clock",
        shard: Shard,
        outcomes: list[RowOutcome],
        opened: list[OpenedRow],
        making: Making,
    ) -> list[Future[None]]:
        """On the device's thread; what it gives back are the encodings that are still under way."""
        clock.lap("wait")
        self._refuse_if_leaving(shard)
        encodings = _Backlog()
        by_index = {outcome.row.index: outcome for outcome in outcomes}
        for generated in self._engine.generate(opened, self._decoders):
            self._beat()
            outcome = by_index[generated.sample.opened.row.index]
            outcome.truncated = generated.sample.truncated
            if generated.problem:
                if not outcome.problem:
                    outcome.problem = generated.problem
                    making.failed(generated.problem)
                continue
            encodings.add(
                self._encoders.submit(self._finish, shard, outcome, generated), _size_bytes(generated)
            )
            making.images += 1
        clock.lap("generate")
        return encodings.futures

    def _finish(self, shard: Shard, outcome: RowOutcome, generated: Generated) -> None:
        """On an encoder's thread: the picture as a file, kept with its row or stored as an object."""
        self._beat()
        image_index = generated.sample.image_index
        name = f"{shard.name}-{outcome.row.index:06d}-{image_index}"
        image_format = self._job.spec.output.format
        pixels, depth = generated.pixels, generated.depth
        outcome.images.append(
            FinishedImage(
                image_index=image_index,
                image=None if pixels is None else self._stored(shard, name, pixels, image_format),
                # Whatever the pictures' format is: only PNG holds sixteen bits.
                depth=None if depth is None else self._stored(shard, f"{name}-depth", depth, "png"),
                steps=tuple(
                    self._stored(shard, f"{name}-step{place}", step, image_format)
                    for place, step in enumerate(generated.sample.kept)
                ),
                width=None if pixels is None else pixels.shape[1],
                height=None if pixels is None else pixels.shape[0],
                nsfw=generated.nsfw,
            )
        )

    def _stored(self, shard: Shard, name: str, pixels: Pixels | Depth, image_format: str) -> StoredImage:
        data = encode(pixels, image_format)
        return StoredImage(data=data, path=self._place(shard, f"{name}.{MEDIA_ENDINGS[image_format]}", data))

    def _place(self, shard: Shard, name: str, data: bytes) -> str:
        """The picture's name in the part, or the URI of the object that it becomes."""
        spec = self._job.spec.output
        if spec.images == "parquet":
            return name
        # The name holds the content's hash: whichever attempt wrote it, a part that names it is right.
        digest = hashlib.sha256(data).hexdigest()[:16]
        uri = join(normalise(spec.path), "images", shard.name, f"{digest}-{name}")
        if shard.rehearse is None:
            self._output.create(uri, data, {})
        return uri

    def _assemble(
        self,
        shard: Shard,
        outcomes: list[RowOutcome],
        encodings: list[Future[None]],
        kept: Mapping[int, list[Record]],
    ) -> Part:
        for encoding in encodings:
            encoding.result()
        return build_part(
            outcomes,
            self._schema,
            job=self._job.fingerprint,
            shard=shard.name,
            embed_images=self._job.spec.output.images == "parquet",
            footer=self._footer,
            kept=kept,
        )

    def _commit(self, shard: Shard, part: Part, before: "_PartThere | None") -> bool:
        return commit_part(
            self._output,
            part_uri(self._job, shard),
            part.data,
            job=self._job.fingerprint,
            shard=shard.name,
            attempt=uuid.uuid4().hex,
            replaces=None if before is None else before.etag,
        )

    def _beat(self) -> None:
        # Two threads at once may count as one: it only has to move.
        self._beats += 1


def _known_problem(row: Row, shard: Shard) -> RowError | None:
    """The problem of a row that the driver knows of: its id was there before, or making it kills."""
    if row.index in shard.repeated:
        return RowError("duplicate_row_id", "an earlier row of the input has the same id")
    if row.index in shard.skip:
        return RowError(
            "worker_crash",
            "making this row takes its worker process down, also when it is made alone; "
            "the rest of its shard was made without it",
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _PartThere:
    """A committed part of which some rows are made again."""

    etag: str
    data: bytes


class _Backlog:
    """Encodings under way; one more waits while too many bytes are before it."""

    def __init__(self) -> None:
        self.futures: list[Future[None]] = []
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._size_bytes = 0

    def add(self, encoding: Future[None], size_bytes: int) -> None:
        self.futures.append(encoding)
        self._waiting.append((encoding, size_bytes))
        self._size_bytes += size_bytes
        while self._size_bytes > MAX_WAITING_BYTES:
            oldest, size = self._waiting.popleft()
            oldest.result()
            self._size_bytes -= size


def _size_bytes(generated: Generated) -> int:
    pictures = (generated.pixels, generated.depth, *generated.sample.kept)
    return sum(picture.nbytes for picture in pictures if picture is not None)


class _Clock:
    """Seconds of one shard, by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._begun, 4)
        self._begun = now
