"""A worker as a process of its own: it builds from names what cannot be sent."""

import logging
from importlib import import_module

from actors.storage import normalise, open_storage
from actors.worker import Worker
from schemas.job import Job

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
        """Answers once the process is up and its engine is made."""
        return True
