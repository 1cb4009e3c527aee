"""Whether a job's output fits on the disk that it goes to: asked before anything is paid for."""

import os
import shutil

from actors.storage.output import Output
from actors.storage.uris import S3_SCHEME
from jobs.output.parts import list_parts
from schemas.errors import SpecError
from schemas.wording.amounts import size_text


def refuse_full_disk(path: str, needed_bytes: int) -> None:
    """SpecError where less is free than is needed; stores such as S3 have no end."""
    if path.startswith(S3_SCHEME):
        return
    disk = shutil.disk_usage(_nearest_folder(path))
    if not disk.total:
        raise SpecError(
            f"output.path: {path} lies on a disk that has no size, such as /proc; choose another place"
        )
    free = disk.free
    if needed_bytes > free:
        raise SpecError(
            f"output.path: {path} will need about {size_text(needed_bytes)}, and its disk has "
            f"{size_text(free)} free; free some, choose another disk or s3://, or a smaller output.format"
        )


def bytes_to_come(output: Output, num_shards: int) -> int:
    """What the missing parts of a local output will take, if they are like those that are there."""
    if output.path.startswith(S3_SCHEME):
        return 0  # Not worth a listing: nobody asks.
    sizes = [part.stored.size_bytes for part in list_parts(output, num_shards)]
    return sum(sizes) * (num_shards - len(sizes)) // max(len(sizes), 1)


def _nearest_folder(path: str) -> str:
    """The folder itself, or what of its path is there already."""
    while not os.path.isdir(path):
        if os.path.lexists(path):
            raise SpecError(f"output.path: {path} is no folder; move it away or name another place")
        path = os.path.dirname(path)
    return path
