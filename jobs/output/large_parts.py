"""Parts that are too large for one request to the output's store: whether it takes them in pieces."""

from dataclasses import replace

from actors.parts.commit import takes_pieces
from actors.storage.objects import MAX_PUT_BYTES
from actors.storage.output import Output
from actors.storage.uris import S3_SCHEME
from jobs.planning.plan import LargestPart, Plan
from schemas.errors import SpecError
from schemas.wording.amounts import counted, size_text


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
        f"{size_text(MAX_PUT_BYTES)}, because it does not honour the condition with which an upload in "
        f"pieces is completed. About {counted(fitting, 'row')} would fit: use another store, or "
        f"--set batching.shard_rows={fitting}"
    )


def for_store(plan: Plan, output: Output) -> Plan:
    """The plan, whose workers are told whether the output's store takes large parts in pieces.

    Parts without images are small, and the store is not asked.
    """
    has_images = plan.job.spec.output.images == "parquet"
    return replace(plan, job=replace(plan.job, in_pieces=has_images and takes_pieces(output)))
