"""The connection to the Ray cluster that a job runs on."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from actors.storage.uris import normalise
from jobs.fleet.ray_faults import check_answers, ray_faults
from jobs.fleet.shipped_folder import code_folders
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec

logger = logging.getLogger(__name__)

_TOKEN_LOGGER = logging.getLogger("ray._private.authentication.authentication_token_setup")


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
    check_answers(address)
    action = f"connect to the Ray cluster at {address}" if address else "start Ray"
    # Ray 2.60 warns of what it does by itself on a cluster of one machine, and what nobody has to change.
    _TOKEN_LOGGER.addFilter(
        lambda record: not record.getMessage().startswith("Token authentication is enabled")
    )
    with ray_faults(action), _own_sigterm():
        ray.init(**_options(address))
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
        options["runtime_env"] = {"py_modules": [str(folder) for folder in code_folders()]}
    return options


def is_own() -> bool:
    """Whether this process has started Ray on this machine alone; other clusters may get more machines."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def with_output_settled(spec: JobSpec) -> JobSpec:
    """The spec with an absolute output.path, because workers may have another current folder.

    SpecError for a relative one inside a Ray job.
    """
    if in_ray_job():
        refuse_relative_output(spec)
    output = normalise(spec.output.path)
    return spec.model_copy(update={"output": spec.output.model_copy(update={"path": output})})


def refuse_relative_output(spec: JobSpec) -> None:
    """Raise SpecError if the output would be in the working folder of a Ray job."""
    path = spec.output.path
    if "://" not in path and not path.startswith(("/", "~")):
        raise SpecError(
            f"output.path is {path}, a relative path: a Ray job would write to its copy of the working "
            "folder, on one machine, and Ray deletes it after the job. Use s3:// or an absolute path"
        )
