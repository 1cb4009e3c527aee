"""The Ray that a job runs on: joined or started, and how many workers it holds."""

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
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec, WorkersSpec

logger = logging.getLogger(__name__)

CONNECT_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The workers of a job on this cluster."""

    num: int
    num_gpus: float
    num_cpus: int

    def describe(self) -> str:
        """For the log."""
        each = [f"{self.num_gpus:g} GPU"] if self.num_gpus else []
        workers = "1 worker" if self.num == 1 else f"{self.num} workers"
        return f"{workers} of {' and '.join([*each, f'{self.num_cpus} CPU'])} each"


def in_ray_job() -> bool:
    """Whether this process is the entrypoint of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def connected() -> Iterator[None]:
    """Inside the block there is a Ray: the one that RAY_ADDRESS names, or one that starts and ends here."""
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
            f"cannot {f'join the Ray at {address}' if address else 'start Ray'}: {error}. "
            "If it asks for a token, set RAY_AUTH_MODE=token here and give it in ~/.ray/auth_token"
        ) from error
    if address not in ("", "local") and os.environ.get("RAY_AUTH_MODE") != "token":
        # It would not have let us in without a token if it asked for one.
        logger.warning(
            "the Ray at %s has no authentication: whoever reaches its ports can run code there and use its "
            "credentials. Set RAY_AUTH_MODE=token on all its machines and here",
            address,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray 2.60 would try for a quarter of an hour to reach a head that is not there."""
    if address.startswith("http"):
        raise SpecError(
            f"RAY_ADDRESS is {address}, the address for `darkroom submit --address`; "
            "to join a Ray from here, give its head as host:6379, or unset it to start one"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", "local", or none
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_WITHIN_S).close()
    except OSError as error:
        raise SpecError(
            f"RAY_ADDRESS is {address}, and nobody answers there: {error}. "
            "Unset it to start Ray on this machine"
        ) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """ray.init puts a SIGTERM handler of its own in place, which raises SystemExit: undo both."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _options(address: str) -> dict[str, Any]:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not address:
        # Without an address Ray would join whichever `ray start` it finds on this machine.
        options |= {"address": "local", "include_dashboard": False}
    elif not in_ray_job():
        # A job's working directory has brought the code already.
        options["runtime_env"] = {
            "py_modules": [str(Path(package.__path__[0])) for package in (schemas, actors, jobs, models)]
        }
    return options


def lay_out(spec: WorkersSpec, num_shards: int) -> Layout:
    """How many workers of which size this cluster can hold and this job can use."""
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
    """Whether this Ray is this machine alone: others may grow, by an autoscaler or by hand."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def _check_room(layout: Layout) -> None:
    """Ray itself would wait for ever, and without a word, for a machine that is large enough."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(_has_room(machine, layout) for machine in machines):
        return
    sizes = {f"{machine.get('GPU', 0):g} GPU and {machine.get('CPU', 0):g} CPU" for machine in machines}
    wanted, there = f"{layout.num_gpus:g} GPU and {layout.num_cpus} CPU", ", ".join(sorted(sizes))
    if _is_own():
        raise SpecError(
            f"a worker is to have {wanted}, and this machine has {there}: lower workers.num_gpus and "
            "workers.num_cpus, or leave them auto"
        )
    logger.warning(
        "waiting for a machine with %s, which is one worker: those in the cluster now have %s. If none is to "
        "come, stop this and lower workers.num_gpus and workers.num_cpus",
        wanted,
        there,
    )


def _has_room(machine: dict[str, float], layout: Layout) -> bool:
    return machine.get("CPU", 0) >= layout.num_cpus and machine.get("GPU", 0) >= layout.num_gpus


def num_fitting(layout: Layout) -> int:
    """How many such workers the cluster has room for as it is now."""
    resources = ray.cluster_resources()
    by_cpus = int(resources.get("CPU", 0) // layout.num_cpus)
    return min(by_cpus, int(resources.get("GPU", 0) // layout.num_gpus)) if layout.num_gpus else by_cpus


_OUTPUT_IN_JOB = (
    "output.path {path} is relative, so this Ray job writes to {output}: a folder on one machine, which Ray "
    "deletes some time after the job. Use s3:// or an absolute path"
)


def with_output_settled(spec: JobSpec, console: Console) -> JobSpec:
    """The spec with an absolute output.path: workers may have another current folder."""
    output = normalise(spec.output.path)
    if in_ray_job() and output.startswith(f"{os.getcwd()}/"):
        console.print(_OUTPUT_IN_JOB.format(path=spec.output.path, output=output), soft_wrap=True)
    return spec.model_copy(update={"output": spec.output.model_copy(update={"path": output})})
