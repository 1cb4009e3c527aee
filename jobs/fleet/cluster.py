"""The Ray cluster that a job runs on: the connection to it, and how many workers of which size it gets."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from rich.console import Console

import actors
import jobs
import models
import schemas
from actors.storage.uris import normalise
from models.demo_cache import builder_folder
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec, WorkersSpec
from schemas.wording.amounts import counted

logger = logging.getLogger(__name__)

CONNECT_WITHIN_S = 10.0
"""How long the head of a cluster may take to accept a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The workers of a job on this cluster."""

    num: int
    """Workers."""
    num_gpus: float
    """GPUs of each worker; less than 1 where workers share a GPU."""
    num_cpus: int
    """CPU cores of each worker."""

    def describe(self) -> str:
        """The line that a run prints: `1 worker with 1 GPU and 4 CPUs`, `2 workers with 1 CPU each`."""
        gpus = f"{counted(self.num_gpus, 'GPU')} and " if self.num_gpus else ""
        each = "" if self.num == 1 else " each"
        return f"{counted(self.num, 'worker')} with {gpus}{counted(self.num_cpus, 'CPU')}{each}"


def in_ray_job() -> bool:
    """Whether this process is the entrypoint of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray for the block: to the cluster at RAY_ADDRESS, or to one that starts and ends here."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    _check_answers(address)
    try:
        with _own_sigterm():
            ray.init(**_options(address))
    except (ConnectionError, AuthenticationError) as error:
        raise SpecError(
            f"cannot {f'connect to the Ray cluster at {address}' if address else 'start Ray'}: {error}. "
            "If it asks for a token, set RAY_AUTH_MODE=token here and save the token in ~/.ray/auth_token"
        ) from error
    if address not in ("", "local") and os.environ.get("RAY_AUTH_MODE") != "token":
        # A cluster with authentication would have refused a connection without a token.
        logger.warning(
            "the Ray cluster at %s has no authentication: anyone who reaches its ports can run code there "
            "and use its credentials. Set RAY_AUTH_MODE=token on all its machines and here",
            address,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise SpecError if nothing answers at the address; Ray 2.60 would try for a quarter of an hour."""
    if address.startswith("http"):
        raise SpecError(
            f"RAY_ADDRESS is {address}, the address for `darkroom submit --address`; "
            "to connect to a cluster, set it to its head as host:6379, or unset it to start Ray here"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", "local", or no address
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_WITHIN_S).close()
    except OSError as error:
        raise SpecError(
            f"RAY_ADDRESS is {address}, but nothing answers there: {error}. "
            "Unset it to start Ray on this machine"
        ) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep our SIGTERM handler: ray.init installs one that raises SystemExit, so both are undone."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _options(address: str) -> dict[str, Any]:
    """The arguments of ray.init."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not address:
        # Without an address Ray would connect to any cluster that `ray start` has started on this machine.
        options |= {"address": "local", "include_dashboard": False}
    elif not in_ray_job():
        # In a Ray job, the working directory already contains the code.
        folders = [Path(package.__path__[0]) for package in (schemas, models, actors, jobs)]
        options["runtime_env"] = {"py_modules": [str(folder) for folder in (*folders, builder_folder())]}
    return options


def lay_out(spec: WorkersSpec, num_shards: int) -> Layout:
    """The number and size of the workers that fit into this cluster now and that this job can use.

    SpecError where this machine alone is the cluster and has no room for one worker.
    """
    resources = ray.cluster_resources()
    gpus, cpus = resources.get("GPU", 0), int(resources.get("CPU", 1))
    num_gpus = float(bool(gpus)) if spec.num_gpus == "auto" else spec.num_gpus
    if num_gpus and not gpus and _is_own():
        raise SpecError(
            f"workers.num_gpus is {num_gpus:g} and this machine has no GPU that Ray can see; "
            "use --set workers.num_gpus=0 to run on its CPUs"
        )
    gpu_share = num_gpus / gpus if gpus else 0.0
    num_cpus = spec.num_cpus if spec.num_cpus != "auto" else max(1, min(4, int(cpus * gpu_share)))
    fitting = int(1 / gpu_share) if gpu_share else cpus // num_cpus
    num = spec.num if spec.num != "auto" else max(1, fitting)
    layout = Layout(num=min(num, num_shards), num_gpus=num_gpus, num_cpus=num_cpus)
    _check_room(layout)
    return layout


def _is_own() -> bool:
    """Whether this process has started Ray on this machine alone; other clusters may get more machines."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def _check_room(layout: Layout) -> None:
    """Raise SpecError, or log a warning, if no machine is large enough for one worker.

    Ray itself would wait silently and without end for a larger machine. On a cluster one may still join.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(_has_room(machine, layout) for machine in machines):
        return
    sizes = {_size_text(machine.get("GPU", 0), machine.get("CPU", 0)) for machine in machines}
    needed, available = _size_text(layout.num_gpus, layout.num_cpus), ", ".join(sorted(sizes))
    if _is_own():
        raise SpecError(
            f"a worker needs {needed}, and this machine has {available}: lower workers.num_gpus and "
            "workers.num_cpus, or leave them auto"
        )
    logger.warning(
        "waiting for a machine with %s for one worker: those in the cluster now have %s. If no such machine "
        "will join, stop the job and lower workers.num_gpus and workers.num_cpus",
        needed,
        available,
    )


def _size_text(num_gpus: float, num_cpus: float) -> str:
    return f"{counted(num_gpus, 'GPU')} and {counted(num_cpus, 'CPU')}"


def _has_room(machine: dict[str, float], layout: Layout) -> bool:
    return machine.get("CPU", 0) >= layout.num_cpus and machine.get("GPU", 0) >= layout.num_gpus


def machines_for(layout: Layout) -> set[str]:
    """Ray's ids of the machines that are large enough for a worker, busy ones included."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and _has_room(node["Resources"], layout)}


def num_fitting(layout: Layout) -> int:
    """How many workers of this size fit into the cluster's present machines, busy ones included."""
    resources = ray.cluster_resources()
    by_cpus = int(resources.get("CPU", 0) // layout.num_cpus)
    return min(by_cpus, int(resources.get("GPU", 0) // layout.num_gpus)) if layout.num_gpus else by_cpus


_OUTPUT_IN_JOB = (
    "output.path {path} is relative, so this Ray job writes to {output}: a folder on one machine, which Ray "
    "deletes some time after the job ends. Use s3:// or an absolute path"
)


def with_output_settled(spec: JobSpec, console: Console) -> JobSpec:
    """The spec with an absolute output.path, because workers may have another current folder."""
    output = normalise(spec.output.path)
    if in_ray_job() and output.startswith(f"{os.getcwd()}/"):
        console.print(_OUTPUT_IN_JOB.format(path=spec.output.path, output=output), soft_wrap=True)
    return spec.model_copy(update={"output": spec.output.model_copy(update={"path": output})})
