"""`darkroom retry`: rows whose status is `failed` are generated again, and their parts are replaced."""

from collections.abc import Sequence

from rich.console import Console

from actors.storage.output import Output, open_output
from actors.worker_process import ENGINE
from jobs.dispatch.dispatcher import Dispatcher
from jobs.fleet.cluster import with_output_settled
from jobs.fleet.shard_loop import RunWatch, generate_shards
from jobs.output.job_record import plan_of, require_record, survey_of
from jobs.output.lease import Lease
from jobs.output.part_footers import read_footers
from jobs.output.parts import Parts, list_parts
from jobs.output.tally import Tally
from jobs.planning.plan import Plan, chosen_shards
from jobs.reports.finish import finish
from jobs.reports.run_result import RunResult
from jobs.reports.summary import job_totals
from jobs.signals import stopping_signals
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted
from schemas.wording.nearest import did_you_mean


def retry_job(
    spec: JobSpec, console: Console, only: Sequence[str] = (), *, engine: str = ENGINE
) -> RunResult:
    """Generate the failed rows again: those with a code in `only`, or all if it is empty.

    Every other row stays as it is.
    """
    spec = with_output_settled(spec)
    output = open_output(spec.output.path, deadline_s=spec.errors.storage_deadline_s)
    with stopping_signals():
        record = require_record(output)
        plan = plan_of(record, survey_of(spec, record), output.path)
        parts = list_parts(output, record.num_shards)
        chosen = _shards_to_retry(output, parts, only)
        num_rows = sum(shard.num_rows for shard in plan.shards() if chosen[shard.index])
        tally = Tally(rows_total=num_rows, rows_before=0)
        dispatcher = _dispatcher(plan, chosen, tuple(only))
        totals = None
        if any(chosen):
            with Lease(output) as lease:
                console.print(f"retrying the failed rows of {counted(sum(chosen), 'part')}")
                generate_shards(plan, dispatcher, RunWatch(tally=tally, lease=lease), console, engine)
                # A retry replaces parts and adds none, so a part that was missing is still missing.
                if parts.are_all:
                    lease.confirm(tally)
                    totals = finish(output, record, tally.figures())
        return RunResult(
            output=output.path,
            totals=totals or job_totals(output, record, list_parts(output, record.num_shards)),
            rows_tried=tally.rows,
            images_generated=tally.images,
            abandoned=tuple(dispatcher.abandoned),
            failures=tally.failures,
        )


def _shards_to_retry(output: Output, parts: Parts, only: Sequence[str]) -> bytearray:
    """One byte per shard, 1 if its part has failed rows with a code in `only`, or any if it is empty.

    SpecError for a code that no part has.
    """
    chosen = bytearray(parts.num_shards)
    every_code: set[str] = set()
    for part, footer in zip(parts, read_footers(output, parts), strict=True):
        every_code.update(footer.error_codes)
        chosen[part.index] = any(not only or code in only for code in footer.error_codes)
    for code in only:
        if code not in every_code:
            choices = f"; the codes of failed rows are {', '.join(sorted(every_code))}" if every_code else ""
            raise SpecError(
                f"--only {code}: no row failed with it{did_you_mean(code, sorted(every_code))}{choices}"
            )
    return chosen


def _dispatcher(plan: Plan, chosen: bytearray, only: tuple[str, ...]) -> Dispatcher:
    """The dispatcher of the chosen shards (one byte per shard)."""
    shards = chosen_shards(plan, lambda shard: bool(chosen[shard.index]), again=only)
    return Dispatcher(shards, max_attempts=plan.job.spec.errors.max_attempts)
