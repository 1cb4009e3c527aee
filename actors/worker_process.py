"""A worker as a process of its own. It builds here what cannot be sent to it, and ends after a SIGTERM."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from importlib import import_module
from typing import Any

from actors.checkpoints.model_cards import refuse_other_files
from actors.engine.engine import Engine
from actors.storage.output import Output, open_output
from actors.storage.stores import Stores
from actors.worker import Worker
from models.caches import compiled_folder
from schemas.errors import DeviceError, ReclaimedError, SpecError
from schemas.job import Job, Shard, ShardReport, WorkerProgress
from schemas.output_layout import JOB_RECORD

logger = logging.getLogger(__name__)

ENGINE = "actors.engine.diffusers_engine:make_engine"
"""`module:function` that builds the engine. It runs here and not on the driver, which never imports torch."""

EXIT_AFTER_S = 5.0
"""How long a process that must end waits for the driver to end it. Then it ends itself."""


def build_worker(job: Job, output: Output, *, num_cpus: int, engine: str = ENGINE) -> Worker:
    """A worker in this process that writes to `output`."""
    if job.spec.batching.compile:
        # Before torch is imported, which sets the variable itself (2.13): to a folder of all versions.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled_folder()))
    return Worker(
        job,
        engine=_make_engine(engine)(job, num_cpus),
        stores=Stores(job.spec.errors.storage_deadline_s),
        output=output,
        num_threads=num_cpus,
    )


def load_ahead(engine: str = ENGINE) -> None:
    """Import the engine's libraries on a thread, which takes seconds, while the caller does something else.

    Errors come where the engine is built, which imports them again.
    """

    def try_to_import() -> None:
        with suppress(Exception):
            _make_engine(engine)

    threading.Thread(target=try_to_import, daemon=True).start()


def _make_engine(engine: str) -> Callable[[Job, int], Engine]:
    """The function that builds the engine of this name."""
    # When they are imported, both would warn of libraries that they do without.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    module, _, function = engine.partition(":")
    make: Callable[[Job, int], Engine] = getattr(import_module(module), function)
    return make


class WorkerProcess:
    """What a Ray actor does for a job. What can hang is done in `ready`, not in the constructor."""

    def __init__(self, job: Job, *, num_cpus: int, engine: str = ENGINE) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
        self._job = job
        self._num_cpus = num_cpus
        self._engine = engine
        self._worker: Worker | None = None
        self._leaving = False
        self._out_of_time: Future[None] = Future()
        self._runs = ThreadPoolExecutor(thread_name_prefix="run")
        # Ray 2.60's own handler ends the process once its calls are done, and meanwhile accepts new ones.
        signal.signal(signal.SIGTERM, self._leave)

    def ready(self) -> bool:
        """True once the worker is built; SpecError where it does not see the driver's output or files."""
        self._worker = self._build_worker()
        if self._leaving:
            raise ReclaimedError("asked to end before it was ready")
        return True

    def run(self, shard: Shard) -> ShardReport:
        """The report of `Worker.run`.

        After a SIGTERM only a shard on the device is finished, and only in time; ReclaimedError for others.
        DeviceError if the device is lost; then the process ends soon, even if the driver does not hear of it.
        """
        report = self._runs.submit(self._ready_worker.run, shard)
        futures: list[Future[Any]] = [report, self._out_of_time]
        wait(futures, return_when=FIRST_COMPLETED)
        if not report.done():
            raise ReclaimedError(f"{shard.name} was not finished in time")
        try:
            return report.result()
        except DeviceError:
            _after(EXIT_AFTER_S, os._exit, 1)
            raise

    def progress(self) -> WorkerProgress:
        """What `Worker.progress` returns."""
        return self._ready_worker.progress()

    @property
    def _ready_worker(self) -> Worker:
        assert self._worker is not None, "asked before it was ready"
        return self._worker

    def _build_worker(self) -> Worker:
        output = open_output(
            self._job.spec.output.path,
            deadline_s=self._job.spec.errors.storage_deadline_s,
            in_pieces=self._job.in_pieces,
        )
        for name, card in self._job.models.items():
            refuse_other_files(name, card)
        worker = build_worker(self._job, output, num_cpus=self._num_cpus, engine=self._engine)
        if not output.has(JOB_RECORD):
            raise SpecError(
                f"{output.uri(JOB_RECORD)}, which the driver has written, does not exist for a worker on "
                f"{socket.gethostname()}: "
                "output.path must be a place that every machine of the cluster shares, such as s3://"
            )
        return worker

    def _leave(self, number: int, frame: object) -> None:
        """Handle a SIGTERM. The driver ends this process once it has given its shards back."""
        if self._leaving:
            return
        self._leaving = True
        notice_s = self._job.spec.workers.notice_s
        logger.warning("told to end: the shard on the device has %g s", notice_s)
        if self._worker:
            self._worker.leave()
        _after(notice_s, self._out_of_time.set_result, None)
        _after(notice_s + EXIT_AFTER_S, os._exit, 128 + number)


def _after(seconds: float, call: Callable[[Any], object], argument: object) -> None:
    timer = threading.Timer(seconds, call, (argument,))
    timer.daemon = True
    timer.start()
