"""Whether this machine has the memory and the disks that a run needs."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants

from actors import machine_limits
from actors.storage.uris import S3_SCHEME
from jobs.checkup.finding import Finding, ok, problem, warning
from jobs.output.capacity import nearest_folder
from models.caches import cache_folder
from schemas.wording.amounts import counted, size_text

LEAST_MEMORY_BYTES = 4_000_000_000
"""Below this, a worker that has loaded Stable Diffusion 1.5 in float32 is killed."""
LEAST_SHARED_BYTES = 1_000_000_000
"""Ray keeps objects in /dev/shm, and on disk where it is smaller, which it warns of."""
LEAST_FREE_BYTES = 1_000_000_000
XL_BYTES = 7_000_000_000
"""The size of the download of Stable Diffusion XL in float16."""
SHARED = "/dev/shm"


class Disk(NamedTuple):
    """What a folder is for, and which variable moves it."""

    purpose: str
    path: str
    moved_by: str
    advisable_bytes: int = 2 * LEAST_FREE_BYTES


def free_bytes(path: str) -> int:
    """The free bytes of the disk on which a folder is or would be."""
    return shutil.disk_usage(nearest_folder(path)).free


def check_memory(
    memory_bytes: Callable[[], int] = machine_limits.memory_bytes,
    num_cpus: Callable[[], int] = machine_limits.num_cpus,
    free: Callable[[str], int] = free_bytes,
) -> Iterator[Finding]:
    """The memory and CPUs of this machine or container, and its shared memory."""
    memory, shared = memory_bytes(), free(SHARED) if os.path.isdir(SHARED) else 0
    cpus = f"{counted(num_cpus(), 'CPU')}, {size_text(memory)} of memory"
    if memory < LEAST_MEMORY_BYTES:
        yield warning(
            f"{cpus}: too little for published checkpoints, which need {size_text(LEAST_MEMORY_BYTES)}; "
            "give the container more (docker run --memory)"
        )
    else:
        yield ok(cpus)
    if shared < LEAST_SHARED_BYTES:
        yield warning(
            f"{SHARED} has {size_text(shared)} free, so Ray uses a slower disk; give the container more "
            "(docker run --shm-size=4g)"
        )
    else:
        yield ok(f"{SHARED}: {size_text(shared)} free")


def check_disks(output: str | None = None, free: Callable[[str], int] = free_bytes) -> Iterator[Finding]:
    """The disks that a run writes to. `output`: the path of the output of a spec."""
    disks = [
        Disk("temporary files", tempfile.gettempdir(), "TMPDIR"),
        Disk("downloaded checkpoints", constants.HF_HUB_CACHE, "HF_HOME", XL_BYTES),
        Disk("darkroom's cache", str(cache_folder()), "DARKROOM_CACHE"),
    ]
    if output and not output.startswith(S3_SCHEME):
        disks.append(Disk("the output", str(Path(output).expanduser().absolute()), "output.path"))
    for disk in disks:
        yield _of_disk(disk, free)


def _of_disk(disk: Disk, free: Callable[[str], int]) -> Finding:
    num_bytes = free(disk.path)
    text = f"{disk.purpose}: {size_text(num_bytes)} free for {disk.path}"
    if num_bytes < LEAST_FREE_BYTES:
        return problem(f"{text}; free some, or choose another disk with {disk.moved_by}")
    if num_bytes < disk.advisable_bytes:
        return warning(f"{text}, and {size_text(disk.advisable_bytes)} are advisable; see {disk.moved_by}")
    return ok(text)
