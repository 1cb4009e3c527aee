"""Whether a job's output fits: the whole of it on its disk, and its largest part into its store."""

import os
import shutil
from dataclasses import replace

from actors.parts.commit import takes_pieces
from actors.storage.objects import IN_PIECES_FROM_BYTES, MAX_PUT_BYTES
from actors.storage.output import Output
from actors.storage.uris import S3_SCHEME
from jobs.output.parts import Parts
from jobs.planning.plan import LargestPart, Plan
from schemas.errors import SpecError
from schemas.wording.amounts import counted, size_text

MAX_ERROR = 2
"""By what factor a part of unusual images may exceed the estimate: noise takes 1.6 times as much."""


def refuse_full_disk(path: str, needed_bytes: int) -> None:
    """Raise SpecError if the disk of `path` has less than `needed_bytes` free. S3 has no limit to check."""
    if path.startswith(S3_SCHEME):
        return
    disk = shutil.disk_usage(nearest_folder(path))
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


def bytes_to_come(parts: Parts) -> int:
    """The expected size of the missing parts: the mean size of those that exist, times their number."""
    return parts.size_bytes * (parts.num_shards - len(parts)) // max(len(parts), 1)


def refuse_large_parts(output: Output, largest: LargestPart) -> None:
    """Raise SpecError if the largest part is too large for the output's store.

    Only a store on S3 can have a limit, and it is asked only if a part may exceed it.
    """
    is_small = largest.size_bytes <= MAX_PUT_BYTES or not output.path.startswith(S3_SCHEME)
    if is_small or takes_pieces(output):
        return
    fitting = max(1, largest.rows * MAX_PUT_BYTES // largest.size_bytes)
    raise SpecError(
        f"batching.shard_rows: a part of {counted(largest.rows, 'row')} will have about "
        f"{size_text(largest.size_bytes)}, and the store of {output.path} takes at most "
        f"{size_text(MAX_PUT_BYTES)}, because it cannot be trusted with a conditional upload in pieces. "
        f"About {counted(fitting, 'row')} would fit: use another store, or "
        f"--set batching.shard_rows={fitting}"
    )


def for_store(plan: Plan, output: Output, largest_bytes: int) -> Plan:
    """The plan, whose workers are told whether the output's store takes large parts in pieces.

    The store is not asked if all parts are small. `largest_bytes`: how large the largest may be, as far as
    estimates or other parts tell; 0 if that is not known.
    """
    is_small = 0 < largest_bytes * MAX_ERROR <= IN_PIECES_FROM_BYTES
    has_images = plan.job.spec.output.images == "parquet"
    in_pieces = has_images and not is_small and takes_pieces(output)
    return replace(plan, job=replace(plan.job, in_pieces=in_pieces))


def nearest_folder(path: str) -> str:
    """The deepest folder of the path that exists; SpecError if something else than a folder comes first."""
    while not os.path.isdir(path):
        if os.path.lexists(path):
            raise SpecError(f"output.path: {path} is not a folder; move it away or name another place")
        path = os.path.dirname(path)
    return path
