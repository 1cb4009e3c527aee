"""The connection to the Ray cluster that a job runs on."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
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
from schemas.spec.job_spec import JobSpec

logger = logging.getLogger(__name__)

CONNECT_WITHIN_S = 10.0
"""How long the head of a cluster may take to accept a connection."""


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


def is_own() -> bool:
    """Whether this process has started Ray on this machine alone; other clusters may get more machines."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


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
