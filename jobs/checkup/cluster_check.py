"""Whether Ray starts here, or the cluster at RAY_ADDRESS answers."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobs.checkup.facts import NoFactsError, facts_of
from jobs.checkup.finding import Finding, ok, problem, warning
from schemas.wording.amounts import counted


def ask_ray() -> Mapping[str, Any]:
    """What Ray offers; see jobs/checkup/ray_facts.py."""
    return facts_of("jobs.checkup.ray_facts")


def check_ray(
    ask: Callable[[], Mapping[str, Any]] = ask_ray, address: str | None = None
) -> Iterator[Finding]:
    """Start Ray, or connect to it, and end the connection. `address`: RAY_ADDRESS by default."""
    address = os.environ.get("RAY_ADDRESS", "") if address is None else address
    try:
        facts = ask()
    except NoFactsError as error:
        do = (
            "look at RAY_ADDRESS"
            if address
            else "look at /dev/shm, the memory and the folder for temporary files"
        )
        yield problem(f"Ray cannot be used: {error}; {do}")
        return
    if facts["fault"]:
        yield problem(f"Ray {facts['version']}: {facts['fault']}")
        return
    size = f"{counted(facts['num_cpus'], 'CPU')} and {counted(facts['num_gpus'], 'GPU')}"
    if facts["is_own"]:
        yield ok(f"Ray {facts['version']} starts on this machine: {size}")
    else:
        machines = counted(facts["num_machines"], "machine")
        grows = ", and it can start more" if facts["can_grow"] else ""
        yield ok(f"Ray {facts['version']} answers at {address}: {machines}, {size}{grows}")
    if not facts["num_cpus"] and not facts.get("can_grow"):
        yield warning("no CPU is free for a worker: look at `ray status`")
