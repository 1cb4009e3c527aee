"""A darkroom job whose driver is a separate process."""

import subprocess
import sys

from schemas.spec.job_spec import JobSpec

_CODE = """
import sys
from rich.console import Console
from jobs.run import run_job
from schemas.spec.job_spec import JobSpec
run_job(JobSpec.model_validate_json(sys.argv[1]), Console(file=sys.stderr), engine=sys.argv[2])
"""


def run_job_apart(spec: JobSpec, engine: str, *, quiet: bool = False) -> None:
    """Run the job with the engine of this name in a new process, and wait until it ends."""
    command = [sys.executable, "-c", _CODE, spec.model_dump_json(), engine]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL if quiet else None)
