"""A worker as a process of its own: it builds from names what cannot be sent."""

import logging
import socket
from importlib import import_module

from actors.storage import join, normalise, open_storage
from actors.worker import Worker
from schemas.errors import SpecError
from schemas.job import RECORD, Job

ENGINE = "actors.diffusers_engine:make_engine"
"""module:function that makes the engine, here and not on the driver, which never imports torch."""


class WorkerProcess(Worker):
    """The class that becomes a Ray actor."""

    def __init__(self, job: Job, *, num_cpus: int, engine: str = ENGINE) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
        module, _, function = engine.partition(":")
        deadline_s = job.spec.errors.storage_deadline_s
        super().__init__(
            job,
            engine=getattr(import_module(module), function)(job, num_cpus),
            open_input=lambda uri: open_storage(uri, deadline_s=deadline_s),
            output=open_storage(normalise(job.spec.output.path), deadline_s=deadline_s),
            num_threads=num_cpus,
        )

    def ready(self) -> bool:
        """Answers once the process is up and its engine made; SpecError where its output is another one."""
        record = join(normalise(self._job.spec.output.path), RECORD)
        if self._output.stat(record) is None:
            raise SpecError(
                f"{record}, which the driver has written, is not there for a worker on "
                f"{socket.gethostname()}: "
                "output.path must be a place that every machine of the cluster shares, such as s3://"
            )
        return True
