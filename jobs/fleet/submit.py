"""`darkroom submit`: the same as `darkroom run`, but as a Ray job on a cluster."""

import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

from jobs.fleet.ray_faults import ray_faults
from jobs.fleet.shipped_folder import checked_size, code_folders, shipped_folder, shipped_name
from schemas.wording.amounts import size_text
from schemas.wording.printable import escaped

STOP_WAIT_S = 30
"""Seconds between the SIGTERM and the SIGKILL of `ray job stop`: time to end the workers and the lease."""


def submit_job(spec: Path, options: Sequence[str], address: str, console: Console, *, wait: bool) -> int:
    """Run the spec on the cluster with this darkroom's code; the driver's exit code if `wait`, else 0.

    `options`: those of `darkroom run`.

    SpecError where the cluster cannot be reached or does not take the job.
    """
    with shipped_folder(spec, code_folders()) as folder:
        size = size_text(checked_size(folder))
        console.print(
            f"shipping darkroom's code and {escaped(spec.name)}: {size} before compression",
            highlight=False,
            soft_wrap=True,
        )
        with ray_faults(f"submit the job to {address}"):
            client = JobSubmissionClient(address)
            job_id = client.submit_job(
                entrypoint=shlex.join(["python", "-m", "jobs", "run", shipped_name(spec), *options]),
                runtime_env={
                    "working_dir": str(folder),
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                },
            )
    console.print(f"submitted as {job_id}", highlight=False)
    if not wait:
        console.print(
            f"follow it: ray job logs --address {address} -f {job_id}\n"
            f"stop it:   ray job stop --address {address} {job_id}",
            highlight=False,
            soft_wrap=True,
        )
        return 0
    return follow(client, job_id)


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print the job's log until the job ends; the exit code of its driver."""

    async def copy_log() -> None:
        async for text in client.tail_job_logs(job_id):
            sys.stdout.write(text)
            sys.stdout.flush()

    asyncio.run(copy_log())
    job = client.get_job_info(job_id)
    # `ray job` itself reports only 0 and 1; a stopped job has no exit code.
    code: int | None = job.driver_exit_code
    return code if code is not None else int(job.status != JobStatus.SUCCEEDED)
