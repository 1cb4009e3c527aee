"""The folder that a Ray job takes along, and whether it is small enough for the job server."""

import zlib
from pathlib import Path

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import _dir_travel

from schemas.errors import SpecError
from schemas.wording.amounts import size_text

NUM_NAMED = 10
"""Entries that the message names."""
_BLOCK_BYTES = 1 << 20


def refuse_large_folder(folder: Path) -> None:
    """Raise SpecError if the job server of Ray 2.60 would refuse the folder with status 413."""
    files = _shipped_files(folder)
    size_bytes = sum(size for _, size in files)
    # To compress takes seconds, and what is small enough as it is needs none of it.
    if size_bytes <= DASHBOARD_CLIENT_MAX_SIZE:
        return
    packed_bytes = sum(_packed_bytes(path) for path, _ in files)
    if packed_bytes <= DASHBOARD_CLIENT_MAX_SIZE:
        return
    largest = sorted(files, key=lambda file: -file[1])[:NUM_NAMED]
    listed = "\n".join(f"  {size_text(size)}  {path.relative_to(folder)}" for path, size in largest)
    raise SpecError(
        f"{folder}, which the job takes along, has {size_text(packed_bytes)} as a package, and Ray's job "
        f"server takes {size_text(DASHBOARD_CLIENT_MAX_SIZE)}. Name what it does not need in .rayignore; "
        f"the largest files:\n{listed}"
    )


def _shipped_files(folder: Path) -> list[tuple[Path, int]]:
    """The files that Ray packs, with their sizes; .gitignore and .rayignore name those that it leaves out."""
    files: list[tuple[Path, int]] = []

    def note(path: Path) -> None:
        if path.is_file():
            files.append((path, path.stat().st_size))

    _dir_travel(folder, [], note, include_gitignore=True)
    return files


def _packed_bytes(path: Path) -> int:
    packer, size_bytes = zlib.compressobj(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size_bytes += len(packer.compress(block))
    return size_bytes + len(packer.flush())
