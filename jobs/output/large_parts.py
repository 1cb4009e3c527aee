"""Parts that are too large for one request to the output's store: whether it takes them in pieces."""

from dataclasses import replace

from actors.parts.commit import takes_pieces
from actors.storage.objects import IN_PIECES_FROM_BYTES, MAX_PUT_BYTES
from actors.storage.output import Output
from actors.storage.uris import S3_SCHEME
from jobs.planning.plan import LargestPart, Plan
from schemas.errors import SpecError
from schemas.wording.amounts import counted, size_text

MAX_ERROR = 2
"""By what factor a part of unusual images may exceed the estimate: noise takes 1.6 times as much."""


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


def for_store(plan: Plan, output: Output, largest: LargestPart | None = None) -> Plan:
    """The plan, whose workers are told whether the output's store takes large parts in pieces.

    The store is not asked if all parts are small. `largest`: an estimate, if there is one.
    """
    is_small = largest is not None and largest.size_bytes * MAX_ERROR <= IN_PIECES_FROM_BYTES
    has_images = plan.job.spec.output.images == "parquet"
    in_pieces = has_images and not is_small and takes_pieces(output)
    return replace(plan, job=replace(plan.job, in_pieces=in_pieces))
