"""What a plan says of its time and money."""

from collections.abc import Iterator
from contextlib import suppress

from actors.storage.output import Output
from jobs.estimates.estimate import Estimate, basis_for, estimate, guesses
from jobs.estimates.planned_time import write_planned
from jobs.estimates.published import GPUS
from jobs.estimates.worker_count import expected_workers
from jobs.planning.plan import Plan
from jobs.planning.row_scan import Findings
from schemas.errors import StorageError
from schemas.wording.amounts import counted, duration
from schemas.wording.printable import listed

NUM_GUESSES = 3
"""The GPUs that a plan names if nothing is known of the job's own device."""
TRY = "`darkroom try SPEC` generates a few rows and measures them"


def time_lines(
    plan: Plan,
    findings: Findings,
    output: Output,
    *,
    workers: int | None = None,
    gpu_hour: float | None = None,
    share: float = 1.0,
) -> Iterator[str]:
    """Yield the lines about the time of a job, or of a `share` of its rows, and about its price.

    `workers`: their number, if it is given; `gpu_hour`: the price of an hour of a GPU.
    """
    expected = expected_workers(plan.job.spec.workers, workers)
    known = estimate(plan, findings, basis_for(plan.job, output, expected), expected, share=share)
    if known.source:
        yield from _known_lines(known, gpu_hour)
        return
    on = f" on {expected.device}" if expected.device else ""
    yield f"time: not known, because nothing was measured{on}; {TRY}"
    for gpu, guess in guesses(plan, findings, expected, GPUS)[:NUM_GUESSES]:
        cost = f", {_cost_text(guess, gpu_hour)}" if gpu_hour else ""
        time = f"{_range_text(guess)} with {_workers_text(guess)} on {gpu.name}"
        yield f"  a guess from published figures: {time}{cost}"


def record_planned(plan: Plan, findings: Findings, output: Output) -> None:
    """Keep in the output how long these rows are expected to take, if anything is known of it."""
    workers = expected_workers(plan.job.spec.workers)
    # It is a report, for which no job is to fail.
    with suppress(StorageError):
        known = estimate(plan, findings, basis_for(plan.job, output, workers), workers)
        if known.source and not known.unknown_models:
            write_planned(output, known.planned(plan.num_rows))


def _known_lines(known: Estimate, gpu_hour: float | None) -> Iterator[str]:
    least = "at least " if known.unknown_models else ""
    device = f" on {known.workers.device}" if known.workers.device else ""
    yield f"time: {least}{_range_text(known)} with {_workers_text(known)}{device}; {known.source}"
    loading = f", and {duration(known.load_seconds)} to load models" if known.load_seconds >= 1 else ""
    yield f"  of this, about {duration(known.start_seconds)} to start Ray and workers{loading}"
    for caveat in known.caveats:
        yield f"  {caveat}"
    if known.unknown_models:
        yield f"  not counted: images of {listed(known.unknown_models)}, of which nothing is known; {TRY}"
    if gpu_hour and known.workers.gpus_each:
        yield f"cost: {_cost_text(known, gpu_hour)}"
    elif gpu_hour:
        yield "cost: no GPU is used, so --gpu-hour does not apply"


def _range_text(known: Estimate) -> str:
    return known.planned(0).range_text


def _workers_text(known: Estimate) -> str:
    return counted(known.workers.num, "worker")


def _cost_text(known: Estimate, gpu_hour: float) -> str:
    """`$1.20 to $1.90 at $1.80 an hour of a GPU`, for as long as the workers have their GPUs."""
    gpus = known.workers.num * known.workers.gpus_each
    least, most = (gpus * gpu_hour * seconds / 3600 for seconds in (known.least_seconds, known.most_seconds))
    return f"${least:,.2f} to ${most:,.2f} at ${gpu_hour:,.2f} an hour of a GPU"
