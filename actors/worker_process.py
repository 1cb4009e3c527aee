"""A worker as a process of its own: it builds from names what cannot be sent, and goes when it is told to."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib import import_module
from typing import Any

from actors.storage.output import open_output
from actors.storage.stores import Stores
from actors.worker import Worker
from schemas.errors import ReclaimedError, SpecError
from schemas.job import Job, Shard, ShardReport, WorkerProgress
from schemas.output_layout import JOB_RECORD

logger = logging.getLogger(__name__)

ENGINE = "actors.engine.diffusers_engine:make_engine"
"""module:function that makes the engine, here and not on the driver, which never imports torch."""

EXIT_AFTER_S = 5.0
"""How long after the notice a driver may take to end the process, before it ends itself."""


class WorkerProcess:
    """The class that becomes a Ray actor. What may hang is done by `ready`, not at its birth."""

    def __init__(self, job: Job, *, num_cpus: int, engine: str = ENGINE) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
        self._job = job
        self._num_cpus = num_cpus
        self._engine = engine
        self._worker: Worker | None = None
        self._leaving = False
        self._out_of_time: Future[None] = Future()
        self._runs = ThreadPoolExecutor(thread_name_prefix="run")
        # Ray 2.60's own handler ends the process when its calls are through, and goes on taking new ones.
        signal.signal(signal.SIGTERM, self._leave)

    def born(self) -> bool:
        """Answers as soon as there is a process."""
        return True

    def ready(self) -> bool:
        """Answers once the engine is made; SpecError where its output is another one."""
        self._worker = self._made()
        if self._leaving:
            raise ReclaimedError("asked to end before it was ready")
        return True

    def run(self, shard: Shard) -> ShardReport:
        """See `Worker.run`. After a SIGTERM only a shard on the device is made, if in time."""
        made = self._runs.submit(self._ready_worker.run, shard)
        either: list[Future[Any]] = [made, self._out_of_time]
        wait(either, return_when=FIRST_COMPLETED)
        if not made.done():
            raise ReclaimedError(f"{shard.name} was not made in time")
        return made.result()

    def progress(self) -> WorkerProgress:
        """See `Worker.progress`."""
        return self._ready_worker.progress()

    @property
    def _ready_worker(self) -> Worker:
        assert self._worker is not None, "asked before it was ready"
        return self._worker

    def _made(self) -> Worker:
        module, _, function = self._engine.partition(":")
        job, deadline_s = self._job, self._job.spec.errors.storage_deadline_s
        output = open_output(job.spec.output.path, deadline_s=deadline_s)
        worker = Worker(
            job,
            engine=getattr(import_module(module), function)(job, self._num_cpus),
            stores=Stores(deadline_s),
            output=output,
            num_threads=self._num_cpus,
        )
        if not output.has(JOB_RECORD):
            raise SpecError(
                f"{output.uri(JOB_RECORD)}, which the driver has written, is not there for a worker on "
                f"{socket.gethostname()}: "
                "output.path must be a place that every machine of the cluster shares, such as s3://"
            )
        return worker

    def _leave(self, number: int, frame: object) -> None:
        """On a SIGTERM. The driver ends this process when it has given its shards back."""
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
