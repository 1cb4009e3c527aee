"""What it costs to hash weights and inputs whole: the first time, and when they are known.

python -m benchmarks.hashing --gigabytes 7
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from actors.storage.file_hashes import SETTLED_NS, sha256_of
from actors.storage.local_disk import LocalStorage

BLOCK_BYTES = 64 << 20
REPEATS = 1000
PRINT_SECONDS = """
import sys, time
from actors.storage.file_hashes import sha256_of
begun = time.perf_counter()
sha256_of(sys.argv[1])
print(time.perf_counter() - begun)
"""


def main(
    gigabytes: Annotated[float, typer.Option(help="Size of the file.")] = 7.0,
    rounds: Annotated[int, typer.Option(help="Measurements of a row, of which the median counts.")] = 3,
    folder: Annotated[str, typer.Option(help="A folder on the disk to be measured.")] = "/tmp",
) -> None:
    """Print one line for each way in which a file of random bytes is hashed."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name, "weights.safetensors")
        os.environ["DARKROOM_CACHE"] = str(Path(name, "cache"))
        _write(path, int(gigabytes * 1e9))
        time.sleep(SETTLED_NS / 1e9)
        print("| how | seconds |\n|---|---|", flush=True)
        _print_median("first time, from the disk", rounds, lambda: _first(path, in_memory=False))
        _print_median(
            "first time, from the memory of the system", rounds, lambda: _first(path, in_memory=True)
        )
        _print_median("again, in another process", rounds, lambda: _in_process(path))
        _print_median("again, in the same process", rounds, lambda: _mean_s(lambda: sha256_of(str(path))))
        storage = LocalStorage(temp_dir=name)
        _print_median("the ends alone", rounds, lambda: _mean_s(lambda: storage.stat(str(path))))


def _write(path: Path, num_bytes: int) -> None:
    with open(path, "wb") as file:
        while (missing := num_bytes - file.tell()) > 0:
            file.write(os.urandom(min(BLOCK_BYTES, missing)))
        file.flush()
        os.fsync(file.fileno())


def _first(path: Path, *, in_memory: bool) -> float:
    """Seconds to hash a file that no process has hashed yet."""
    for entry in Path(os.environ["DARKROOM_CACHE"]).glob("hashes/*"):
        entry.unlink()
    if not in_memory:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return _in_process(path)


def _in_process(path: Path) -> float:
    """Seconds to hash the file in a new process, without its start."""
    return float(subprocess.check_output([sys.executable, "-c", PRINT_SECONDS, str(path)], text=True))


def _mean_s(function: Callable[[], object]) -> float:
    function()
    begun = time.perf_counter()
    for _ in range(REPEATS):
        function()
    return (time.perf_counter() - begun) / REPEATS


def _print_median(how: str, rounds: int, measure: Callable[[], float]) -> None:
    print(f"| {how} | {median(measure() for _ in range(rounds)):.6f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
