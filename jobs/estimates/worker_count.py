"""How many workers a job will have, and on what, as far as it can be told without Ray."""

import os
from dataclasses import dataclass

from actors import machine_limits
from schemas.spec.job_spec import WorkersSpec

NUM_CPUS = 1
"""The CPUs of a worker on a machine without a GPU, unless the spec gives another number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedWorkers:
    """The workers of a job."""

    num: int
    device: str = ""
    """What the driver or the system calls the device of each; empty: those of a cluster are not known."""
    num_cpus: int = 0
    """The threads of each, if its CPUs compute; 0: a GPU does, or it is not known."""
    gpus_each: float = 1.0
    """The share of a GPU that each has."""


def cpus_each(spec: WorkersSpec) -> int:
    """The CPUs of each worker on a machine without a GPU."""
    return NUM_CPUS if spec.num_cpus == "auto" else spec.num_cpus


def expected_workers(spec: WorkersSpec, asked: int | None = None) -> ExpectedWorkers:
    """The workers on this machine, or on the cluster at RAY_ADDRESS. `asked`: their number, if it is given.

    With `workers.num: auto` they are as many as this machine has room for; of a cluster, one is counted.
    """
    num = asked or (spec.num if spec.num != "auto" else None)
    share = 1.0 if spec.num_gpus == "auto" else spec.num_gpus
    if os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
        return ExpectedWorkers(num=num or 1, gpus_each=share)
    if share and (gpus := machine_limits.gpu_names()):
        return ExpectedWorkers(num=num or max(1, int(len(gpus) / share)), device=gpus[0], gpus_each=share)
    num_cpus = cpus_each(spec)
    return ExpectedWorkers(
        num=num or max(1, machine_limits.num_cpus() // num_cpus),
        device=machine_limits.cpu_name(),
        num_cpus=num_cpus,
        gpus_each=0.0,
    )
