"""`darkroom submit`: the same as `darkroom run`, but as a Ray job on a cluster."""

import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

import jobs
from jobs.fleet.ray_faults import ray_faults
from jobs.fleet.shipped_folder import refuse_large_folder
from schemas.errors import SpecError

ROOT = Path(jobs.__file__).parent.parent
"""The folder that is shipped: darkroom's repository, which is the working directory of its Ray jobs."""

STOP_WAIT_S = 30
"""Seconds between the SIGTERM and the SIGKILL of `ray job stop`: time to end the workers and the lease."""


def submit_job(spec: Path, options: Sequence[str], address: str, console: Console, *, wait: bool) -> int:
    """Ship the repository to the cluster and run the spec there; the driver's exit code if `wait`, else 0.

    `options`: those of `darkroom run`.

    SpecError where the cluster cannot be reached or does not take the job.
    """
    command = entrypoint(spec, options)
    refuse_large_folder(ROOT)
    runtime_env = {
        "working_dir": str(ROOT),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    }
    with ray_faults(f"submit the job to {address}"):
        client = JobSubmissionClient(address)
        job_id = client.submit_job(entrypoint=command, runtime_env=runtime_env)
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


def entrypoint(spec: Path, options: Sequence[str]) -> str:
    """The command that the cluster runs in its copy of the repository; SpecError for a spec outside it."""
    path = spec.resolve()
    if not path.is_relative_to(ROOT):
        raise SpecError(f"{spec} is outside {ROOT}, the folder that the cluster gets; copy it into configs/")
    return shlex.join(["python", "-m", "jobs", "run", str(path.relative_to(ROOT)), *options])


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
