"""Whether a job's output fits on its disk, checked before anything is generated."""

import os
import shutil

from actors.storage.output import Output
from actors.storage.uris import S3_SCHEME
from jobs.output.parts import list_parts
from schemas.errors import SpecError
from schemas.output_layout import ShardNames
from schemas.wording.amounts import size_text


def refuse_full_disk(path: str, needed_bytes: int) -> None:
    """Raise SpecError if the disk of `path` has less than `needed_bytes` free. S3 has no limit to check."""
    if path.startswith(S3_SCHEME):
        return
    disk = shutil.disk_usage(_nearest_folder(path))
    if not disk.total:
        raise SpecError(
            f"output.path: {path} is on a file system without a size, such as /proc; choose another path"
        )
    free = disk.free
    if needed_bytes > free:
        raise SpecError(
            f"output.path: {path} will need about {size_text(needed_bytes)}, and its disk has "
            f"{size_text(free)} free; free some, or choose another disk, s3:// or a smaller output.format"
        )


def bytes_to_come(output: Output, names: ShardNames) -> int:
    """The expected size of a local output's missing parts: the mean size of its parts, times their number.

    0 for an output on S3.
    """
    if output.path.startswith(S3_SCHEME):
        return 0  # Not worth a listing: the size is used for local disks only.
    parts = list_parts(output, names)
    return parts.size_bytes * (names.num_shards - len(parts)) // max(len(parts), 1)


def _nearest_folder(path: str) -> str:
    """The deepest folder of the path that exists; SpecError if something else than a folder comes first."""
    while not os.path.isdir(path):
        if os.path.lexists(path):
            raise SpecError(f"output.path: {path} is not a folder; move it away or name another place")
        path = os.path.dirname(path)
    return path
