"""How many workers of which size a job gets on the machines of a cluster."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import ray

from jobs.fleet.cluster import is_own
from jobs.fleet.machines import Machines, Resources, find_machines
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
    num_to_come: int = 0
    """Workers for which the cluster's autoscaler has to start machines."""
    head: str = ""
    """Ray's id of the head, if no worker is placed there."""

    def describe(self) -> str:
        """What a run prints of its devices: `1 worker with 1 GPU and 4 CPUs`, `2 workers with 1 CPU each`."""
        gpus = f"{counted(self.num_gpus, 'GPU')} and " if self.num_gpus else ""
        each = "" if self.num == 1 else " each"
        size = f"{counted(self.num, 'worker')} with {gpus}{counted(self.num_cpus, 'CPU')}{each}"
        if self.num_to_come:
            size += f", {self.num_to_come} of them on machines that the cluster has to start"
        if not self.limited_by_shards:
            return size
        return f"{size}: one for each part that is left; a smaller batching.shard_rows makes more parts"


def lay_out(spec: WorkersSpec, num_shards: int) -> Layout:
    """The number and size of the workers for which this cluster has, or can get, room and this job has work.

    SpecError where this machine alone is the cluster and has no room for one worker, and where `num_gpus` is
    left open and nobody can know whether the cluster will have GPUs.
    """
    machines = find_machines()
    layout = _sized(spec, machines)
    num_asked = _num_asked(spec, layout, machines)
    num = min(num_asked, num_shards)
    num_to_come = max(0, num - _num_fitting(machines, layout)) if machines.head else 0
    layout = replace(layout, num=num, limited_by_shards=num < num_asked, num_to_come=num_to_come)
    _check_room(machines, layout)
    return layout


def _sized(spec: WorkersSpec, machines: Machines) -> Layout:
    """One worker of the size that suits these machines."""
    has_gpus = _has_gpus(machines)
    if spec.num_gpus == "auto" and not has_gpus and machines.to_come is None:
        raise SpecError(
            "workers.num_gpus is auto, and this Ray cluster has no machine with a GPU now. It can start "
            "machines, but Ray does not tell of which kind: use --set workers.num_gpus=1, or 0 for its CPUs"
        )
    num_gpus = float(has_gpus) if spec.num_gpus == "auto" else spec.num_gpus
    if num_gpus and not has_gpus and is_own():
        raise SpecError(
            f"workers.num_gpus is {num_gpus:g} and this machine has no GPU that Ray can see; "
            "use --set workers.num_gpus=0 to run on its CPUs"
        )
    num_cpus = spec.num_cpus if spec.num_cpus != "auto" else _cpus_for_all_gpus(machines.sizes, num_gpus)
    return Layout(num=1, num_gpus=num_gpus, num_cpus=num_cpus, head=machines.head)


def _has_gpus(machines: Machines) -> bool:
    return any(machine.get("GPU", 0) >= 1 for machine in machines.sizes)


def with_new_gpus(spec: WorkersSpec, layout: Layout, machines: Machines) -> Layout:
    """The layout for the GPUs of a cluster that had none before; the same one if there is nothing new."""
    if spec.num_gpus != "auto" or layout.num_gpus or not _has_gpus(machines):
        return layout
    return _sized(spec, machines)


def num_workers(spec: WorkersSpec, layout: Layout, machines: Machines, num_shards: int) -> int:
    """How many workers this many shards can use: at least one, and no more than find room now or later."""
    return min(_num_asked(spec, layout, machines), max(1, num_shards))


def _num_asked(spec: WorkersSpec, layout: Layout, machines: Machines) -> int:
    return spec.num if spec.num != "auto" else max(1, _num_possible(machines, layout))


def _num_possible(machines: Machines, layout: Layout) -> int:
    """The workers that fit into the cluster when its autoscaler has started all machines that it can.

    If that is not known, it is twice as many as fit now, and one: with each machine that comes, it grows.
    """
    num_now, num_later = _num_fitting(machines, layout), 0
    if machines.to_come is None:
        return 2 * num_now + 1
    left = machines.max_count
    sizes = [(_num_fitting_on(kind.resources, layout), kind.max_count) for kind in machines.to_come]
    for num_on_each, max_count in sorted(sizes, reverse=True):
        num_machines = min(left, max_count) if num_on_each else 0
        if math.isinf(num_machines):
            return 2 * num_now + 1
        num_later += num_on_each * int(num_machines)
        left -= num_machines
    return max(num_now, num_later)


def _cpus_for_all_gpus(machines: Iterable[Resources], num_gpus: float) -> int:
    """The CPUs of each worker, up to 4, with which every GPU of these machines still gets its workers."""
    shares = [
        int(machine.get("CPU", 0)) // num for machine in machines if (num := _num_by_gpus(machine, num_gpus))
    ]
    # One CPU is what a machine with a GPU that joins later has in any case.
    return max(1, min([MAX_CPUS, *shares])) if shares else 1


def _num_by_gpus(machine: Resources, num_gpus: float) -> int:
    """How many workers the machine's GPUs are enough for. A worker's share is of one GPU, never of two."""
    if not num_gpus:
        return 0
    return int(machine.get("GPU", 0)) * (GPU_UNITS // round(num_gpus * GPU_UNITS))


def _num_fitting_on(machine: Resources, layout: Layout) -> int:
    by_cpus = int(machine.get("CPU", 0)) // layout.num_cpus
    return min(by_cpus, _num_by_gpus(machine, layout.num_gpus)) if layout.num_gpus else by_cpus


def _check_room(machines: Machines, layout: Layout) -> None:
    """Raise SpecError, or log a warning, if no machine is large enough for one worker.

    Ray itself would wait silently and without end for a larger machine. On a cluster one may still join.
    """
    if any(_num_fitting_on(machine, layout) for machine in machines.sizes):
        return
    sizes = {_size_text(machine.get("GPU", 0), machine.get("CPU", 0)) for machine in machines.sizes}
    needed, available = _size_text(layout.num_gpus, layout.num_cpus), ", ".join(sorted(sizes))
    if is_own():
        raise SpecError(
            f"a worker needs {needed}, and this machine has {available}: lower workers.num_gpus and "
            "workers.num_cpus, or leave them auto"
        )
    logger.warning(
        "waiting for a machine with %s for one worker: those in the cluster now%s have %s. If no such "
        "machine will join, stop the job and lower workers.num_gpus and workers.num_cpus",
        needed,
        " and those that it can start" if machines.to_come else "",
        available or "no place for workers",
    )


def _size_text(num_gpus: float, num_cpus: float) -> str:
    return f"{counted(num_gpus, 'GPU')} and {counted(num_cpus, 'CPU')}"


def machines_for(layout: Layout) -> set[str]:
    """Ray's ids of the machines that are large enough for a worker, busy ones included."""
    present = find_machines().present
    return {node for node, machine in present.items() if _num_fitting_on(machine, layout)}


def _num_fitting(machines: Machines, layout: Layout) -> int:
    """How many workers of this size fit into the cluster's present machines, busy ones included."""
    return sum(_num_fitting_on(machine, layout) for machine in machines.present.values())


def resources_in_use(layout: Layout) -> str:
    """What a worker that finds no room is short of: `2 of 2 CPUs in use`; empty if that cannot be seen."""
    all_of, free = ray.cluster_resources(), ray.available_resources()
    used = {
        kind: (all_of.get(kind, 0) - free.get(kind, 0), all_of.get(kind, 0))
        for kind, needed in (("GPU", layout.num_gpus), ("CPU", layout.num_cpus))
        if needed and needed > free.get(kind, 0)
    }
    return ", ".join(
        f"{busy:g} of {counted(total, kind)} in use" if total else f"no {kind} yet"
        for kind, (busy, total) in used.items()
    )
