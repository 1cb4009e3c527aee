"""What a run prints before it starts: what it will generate, with what, and where to."""

from collections.abc import Iterator

from jobs.planning.plan import Plan
from schemas.wording.amounts import counted
from schemas.wording.printable import listed


def opening_lines(plan: Plan, num_done: int) -> Iterator[str]:
    """Yield the lines about a run's rows, models and output, and whether it begins or goes on.

    `num_done`: the number of parts that exist.
    """
    job, num_shards = plan.job, plan.num_shards
    output = job.spec.output
    where = "in Parquet" if output.images == "parquet" else "as files"
    yield f"rows: {plan.num_rows:,} in {counted(num_shards, 'part')}"
    yield f"models: {listed([*job.models])}"
    yield f"output: {output.path}, {output.format} images {where}"
    if num_done:
        saved = f"{num_done:,} of {counted(num_shards, 'part')} already saved"
        yield f"resuming: {saved}, {num_shards - num_done:,} left to generate"
    else:
        yield "a new job: no part of it exists yet"
