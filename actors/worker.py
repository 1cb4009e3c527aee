"""The worker, which runs in a Ray actor and turns shards of input rows into parts of output rows.

Shards overlap. While one is on the device, the next is read and its images' headers are checked, and the
images of the one before are encoded and written. Several threads call `run`; one at a time has the device.
"""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from actors.engine.engine import Engine
from actors.images.image_uris import ImageUris
from actors.parts.part import job_footer
from actors.rows.shard_reader import ShardReader
from actors.shard_run import Pulse, Resources, ShardRun
from actors.storage.output import Output
from actors.storage.retries import long_wait, num_answers
from actors.storage.stores import Stores
from schemas.job import Job, Shard, ShardReport, WorkerProgress


class Worker:
    """One process with one device and one set of components. Several threads may call it."""

    def __init__(self, job: Job, *, engine: Engine, stores: Stores, output: Output, num_threads: int) -> None:
        """`stores` read the input and the images that rows name; `num_threads` encode, and as many decode."""
        pulse = Pulse()
        self._resources = Resources(
            job=job,
            engine=engine,
            output=output,
            reader=ShardReader(job, stores, pulse.beat),
            uris=ImageUris(stores, job.spec.input.pictures),
            schema=pa.ipc.read_schema(pa.py_buffer(job.schema)),
            footer=job_footer(job),
            pulse=pulse,
            device=ThreadPoolExecutor(1, thread_name_prefix="device"),
            decoders=ThreadPoolExecutor(num_threads, thread_name_prefix="decode"),
            encoders=ThreadPoolExecutor(num_threads, thread_name_prefix="encode"),
        )
        self._runs: dict[int, ShardRun] = {}
        """The attempts that are under way, by the index of their shard."""

    def run(self, shard: Shard) -> ShardReport:
        """Turn a shard into a part, which is committed when this returns, unless this is a rehearsal."""
        run = self._runs[shard.index] = ShardRun(shard, self._resources)
        try:
            return run.run()
        finally:
            del self._runs[shard.index]

    def progress(self) -> WorkerProgress:
        """How far the worker is. It can be called while `run` is running."""
        resources = self._resources
        return WorkerProgress(
            unfinished={index: run.progress.snapshot() for index, run in [*self._runs.items()]},
            heartbeats=resources.pulse.heartbeats + resources.engine.heartbeats + num_answers(),
            leaving=resources.pulse.leaving,
            waits_for=long_wait(),
            phase=self._phase(),
            num_steps=resources.engine.num_steps,
        )

    def _phase(self) -> str:
        """What the engine is doing; while it is idle, what the oldest shard is at."""
        return self._resources.engine.phase or next((run.phase for run in [*self._runs.values()]), "")

    def leave(self) -> None:
        """Finish the shard that is on the device, and begin no other one."""
        self._resources.pulse.leaving = True

    def close(self) -> None:
        """End the threads and close the input file."""
        for threads in (self._resources.device, self._resources.decoders, self._resources.encoders):
            threads.shutdown()
        self._resources.reader.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
