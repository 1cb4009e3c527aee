"""A worker's process whose GPU fails: it must report a DeviceError, and end."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import torch

from actors.engine.engine import Generated
from actors.engine.quirks.torch_errors import device_errors
from actors.rows.opened_rows import OpenedRow
from actors.worker_process import EXIT_AFTER_S, WorkerProcess
from benchmarks.parity.device_jobs import planned
from benchmarks.parity.plain_diffusers import row
from schemas.errors import DeviceError
from schemas.job import Job
from schemas.output_layout import JOB_RECORD


class FaultyEngine:
    """An engine whose first kernel reads beyond the end of a tensor."""

    num_loads = 0
    heartbeats = 0
    phase = ""
    num_steps = 0
    models_loaded: tuple[str, ...] = ()

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Raise DeviceError."""
        with device_errors():
            torch.zeros(1, device="cuda")[torch.tensor([9], device="cuda")]
            torch.cuda.synchronize()
        yield from ()


def make_engine(job: Job, num_cpus: int) -> FaultyEngine:
    """The engine of a job; the worker's process calls this function by its name."""
    return FaultyEngine()


def main() -> None:
    """Run a shard, print the error that the driver would get, and wait for the process to end."""
    with tempfile.TemporaryDirectory() as folder:
        plan = planned([row("r", "sd", "text2img")], Path(folder), "float16")
        record = Path(plan.job.spec.output.path, JOB_RECORD)
        record.parent.mkdir(parents=True)
        record.touch()
        worker = WorkerProcess(plan.job, num_cpus=1, engine="benchmarks.parity.faulty_worker:make_engine")
        worker.ready()
        try:
            worker.run(next(iter(plan.shards())))
        except DeviceError as error:
            print(f"DeviceError: {error}", flush=True)
        time.sleep(4 * EXIT_AFTER_S)


if __name__ == "__main__":
    main()
