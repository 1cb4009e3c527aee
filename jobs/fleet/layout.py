"""How many workers of which size a job gets on the machines of a cluster."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import ray

from jobs.fleet.cluster import is_own
from schemas.errors import SpecError
from schemas.spec.job_spec import WorkersSpec
from schemas.wording.amounts import counted

logger = logging.getLogger(__name__)

MAX_CPUS = 4
"""The most CPUs of a worker with a GPU, if the spec leaves it open: reading and encoding use no more."""
GPU_UNITS = 10_000
"""The parts of a GPU that Ray counts in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The workers of a job on this cluster."""

    num: int
    """Workers."""
    num_gpus: float
    """GPUs of each worker: at most 1, and less where workers share a GPU."""
    num_cpus: int
    """CPU cores of each worker."""
    limited_by_shards: bool = False
    """Whether there are fewer workers than fit, because the job has no more shards."""

    def describe(self) -> str:
        """The line that a run prints: `1 worker with 1 GPU and 4 CPUs`, `2 workers with 1 CPU each`."""
        gpus = f"{counted(self.num_gpus, 'GPU')} and " if self.num_gpus else ""
        each = "" if self.num == 1 else " each"
        size = f"{counted(self.num, 'worker')} with {gpus}{counted(self.num_cpus, 'CPU')}{each}"
        if not self.limited_by_shards:
            return size
        return f"{size}: one for each part that is left; a smaller batching.shard_rows makes more parts"


def lay_out(spec: WorkersSpec, num_shards: int) -> Layout:
    """The number and size of the workers that fit into this cluster now and that this job can use.

    SpecError where this machine alone is the cluster and has no room for one worker.
    """
    machines = [*_machines().values()]
    has_gpus = any(machine.get("GPU", 0) >= 1 for machine in machines)
    num_gpus = float(has_gpus) if spec.num_gpus == "auto" else spec.num_gpus
    if num_gpus and not has_gpus and is_own():
        raise SpecError(
            f"workers.num_gpus is {num_gpus:g} and this machine has no GPU that Ray can see; "
            "use --set workers.num_gpus=0 to run on its CPUs"
        )
    num_cpus = spec.num_cpus if spec.num_cpus != "auto" else _cpus_for_all_gpus(machines, num_gpus)
    layout = Layout(num=1, num_gpus=num_gpus, num_cpus=num_cpus)
    num = spec.num if spec.num != "auto" else max(1, num_fitting(layout))
    layout = replace(layout, num=min(num, num_shards), limited_by_shards=num > num_shards)
    _check_room(layout)
    return layout


def _machines() -> dict[str, dict[str, float]]:
    """The resources of the machines that are alive, by Ray's ids."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _cpus_for_all_gpus(machines: Iterable[dict[str, float]], num_gpus: float) -> int:
    """The CPUs of each worker, up to 4, with which every GPU of these machines still gets its workers."""
    shares = [
        int(machine.get("CPU", 0)) // num_workers
        for machine in machines
        if (num_workers := _num_by_gpus(machine, num_gpus))
    ]
    # One CPU is what a machine with a GPU that joins later has in any case.
    return max(1, min([MAX_CPUS, *shares])) if shares else 1


def _num_by_gpus(machine: dict[str, float], num_gpus: float) -> int:
    """How many workers the machine's GPUs are enough for. A worker's share is of one GPU, never of two."""
    if not num_gpus:
        return 0
    return int(machine.get("GPU", 0)) * (GPU_UNITS // round(num_gpus * GPU_UNITS))


def _num_fitting_on(machine: dict[str, float], layout: Layout) -> int:
    by_cpus = int(machine.get("CPU", 0)) // layout.num_cpus
    return min(by_cpus, _num_by_gpus(machine, layout.num_gpus)) if layout.num_gpus else by_cpus


def _check_room(layout: Layout) -> None:
    """Raise SpecError, or log a warning, if no machine is large enough for one worker.

    Ray itself would wait silently and without end for a larger machine. On a cluster one may still join.
    """
    if machines_for(layout):
        return
    sizes = {_size_text(machine.get("GPU", 0), machine.get("CPU", 0)) for machine in _machines().values()}
    needed, available = _size_text(layout.num_gpus, layout.num_cpus), ", ".join(sorted(sizes))
    if is_own():
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


def machines_for(layout: Layout) -> set[str]:
    """Ray's ids of the machines that are large enough for a worker, busy ones included."""
    return {node for node, machine in _machines().items() if _num_fitting_on(machine, layout)}


def resources_in_use(layout: Layout) -> str:
    """What a worker that finds no room is short of: `2 of 2 CPUs in use`; empty if that cannot be seen."""
    all_of, free = ray.cluster_resources(), ray.available_resources()
    used = {
        kind: (all_of.get(kind, 0) - free.get(kind, 0), all_of.get(kind, 0))
        for kind, needed in (("GPU", layout.num_gpus), ("CPU", layout.num_cpus))
        if needed and needed > free.get(kind, 0)
    }
    return ", ".join(f"{busy:g} of {counted(total, kind)} in use" for kind, (busy, total) in used.items())


def num_fitting(layout: Layout) -> int:
    """How many workers of this size fit into the cluster's present machines, busy ones included."""
    return sum(_num_fitting_on(machine, layout) for machine in _machines().values())
