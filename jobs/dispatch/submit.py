"""`darkroom submit`: the same run, as a Ray job on a cluster."""

import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

import jobs
from schemas.errors import DarkroomError, SpecError

ROOT = Path(jobs.__file__).parent.parent
"""What is shipped: darkroom is an application, and its repository is the working directory of its jobs."""

STOP_WAIT_S = 30
"""Between `ray job stop`'s SIGTERM and its SIGKILL: time to end workers and the lease properly."""


def submit_job(spec: Path, overrides: Sequence[str], address: str, console: Console, *, wait: bool) -> int:
    """Ship the repository, run the spec there; the driver's exit code if `wait`, else 0."""
    try:
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=entrypoint(spec, overrides),
            runtime_env={
                "working_dir": str(ROOT),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            },
        )
    except (ConnectionError, RuntimeError) as error:
        raise DarkroomError(f"{address} does not take the job: {error}") from error
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


def entrypoint(spec: Path, overrides: Sequence[str]) -> str:
    """The command that the cluster runs in its copy of the repository."""
    place = spec.resolve()
    if not place.is_relative_to(ROOT):
        raise SpecError(f"{spec} is outside {ROOT}, which is what the cluster gets; copy it into configs/")
    options = [word for override in overrides for word in ("--set", override)]
    return shlex.join(["python", "-m", "jobs", "run", str(place.relative_to(ROOT)), *options])


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print the job's log until it ends; its driver's exit code."""

    async def copy_log() -> None:
        async for text in client.tail_job_logs(job_id):
            sys.stdout.write(text)
            sys.stdout.flush()

    asyncio.run(copy_log())
    ended = client.get_job_info(job_id)
    # `ray job` itself tells 0 and 1 only; stopped jobs have no code of their own.
    code: int | None = ended.driver_exit_code
    return code if code is not None else int(ended.status != JobStatus.SUCCEEDED)
