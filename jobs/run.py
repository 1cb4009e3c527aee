"""`darkroom run`: the function that everything else serves."""

from rich.console import Console

from actors.storage.output import Output, open_output
from actors.worker_process import ENGINE
from jobs.dispatch.dispatcher import Dispatcher
from jobs.estimates.planned_time import read_planned
from jobs.estimates.time_lines import record_planned
from jobs.fleet.budget import Budget
from jobs.fleet.cluster import with_output_settled
from jobs.fleet.shard_loop import RunWatch, generate_shards
from jobs.intake.parquet_copies import store_copies
from jobs.output.capacity import bytes_to_come, for_store, refuse_full_disk
from jobs.output.figures import Totals
from jobs.output.job_record import JobRecord, claim, read_record, require_record
from jobs.output.lease import Lease
from jobs.output.parts import Parts, list_parts, output_totals, still_missing
from jobs.output.resumption import plan_of, survey_of
from jobs.output.tally import Abandoned, Tally
from jobs.planning.opening import opening_lines
from jobs.planning.plan import Plan, chosen_shards
from jobs.planning.plan_text import print_notes
from jobs.preparation import plan_new_rows
from jobs.reports.finish import finish
from jobs.reports.run_result import RunResult
from jobs.reports.success import unfinish
from jobs.reports.summary import reported_totals
from jobs.signals import stopping_signals
from jobs.survey.survey import Survey
from schemas.spec.job_spec import JobSpec
from schemas.wording.printable import escaped


def run_job(spec: JobSpec, console: Console, *, extend: bool = False, engine: str = ENGINE) -> RunResult:
    """Generate every row of the job that has no outcome yet, and return what came of it.

    `extend`: files that are new in the input since the job began become part of the job.
    """
    spec = with_output_settled(spec)
    output = open_output(spec.output.path, deadline_s=spec.errors.storage_deadline_s)
    with stopping_signals():
        record = read_record(output)
        surveyed = survey_of(spec, record)
        print_notes(surveyed, console)
        new = plan_new_rows(surveyed, record, output, console, extend=extend)
        if record and not new and (totals := _finished(record, surveyed, output)):
            return RunResult(output=output.path, totals=totals)
        with Lease(output) as lease:
            # No report is to be believed that is older than the rows and parts that come now.
            unfinish(output)
            if new:
                store_copies((file.copy for file in surveyed.files if file.copy), output)
            record = claim(output, new.plan, new.findings, record) if new else require_record(output)
            if new:
                record_planned(new.plan, new.findings, output)
            plan = plan_of(record, surveyed, output.path)
            parts = list_parts(output, record.shard_names)
            if not parts.are_all:
                largest_bytes = new.largest_bytes if new else 0
                plan = for_store(plan, output, max(largest_bytes, parts.largest_bytes))
            tally, abandoned = _generate_missing(plan, output, parts, lease, console, engine)
            abandoned = still_missing(abandoned, output, record.shard_names)
            if abandoned:
                totals = output_totals(output, record.shard_names)
            else:
                lease.confirm(tally)
                totals = finish(output, record, tally.figures())
        return RunResult(
            output=output.path,
            totals=totals,
            num_missing=len(abandoned),
            run=tally.figures(),
            abandoned=tuple(abandoned),
            failures=tally.failures,
        )


def _finished(record: JobRecord, surveyed: Survey, output: Output) -> Totals | None:
    """The totals of a job that is finished; None if it is not. RefusedError if the job has changed."""
    plan_of(record, surveyed, output.path)
    parts = list_parts(output, record.shard_names)
    return reported_totals(output, record, parts) if parts.are_all else None


def _generate_missing(
    plan: Plan, output: Output, parts: Parts, lease: Lease, console: Console, engine: str
) -> tuple[Tally, list[Abandoned]]:
    """Generate the parts that do not exist yet; the tally, and the shards that were left out."""
    done = parts.done()
    tally = Tally(rows_total=plan.num_rows, rows_before=_num_rows_done(plan, done))
    num_missing = len(done) - sum(done)
    if not num_missing:
        console.print("all parts exist; writing the reports, which are missing or older than the parts")
        return tally, []
    tally.planned = read_planned(output)
    if sum(done):
        refuse_full_disk(output.path, bytes_to_come(parts))
    for line in opening_lines(plan, sum(done)):
        console.print(escaped(line), soft_wrap=True)
    dispatcher = _dispatcher(plan, done)
    watch = RunWatch(tally=tally, lease=lease, budget=Budget(plan.job.spec.errors))
    generate_shards(plan, dispatcher, watch, console, engine)
    return tally, dispatcher.abandoned


def _dispatcher(plan: Plan, done: bytearray) -> Dispatcher:
    """The dispatcher of the missing shards."""
    missing = chosen_shards(plan, lambda shard: not done[shard.index])
    return Dispatcher(
        missing,
        max_attempts=plan.job.spec.errors.max_attempts,
        working=[model for model, shards in missing.items() if len(shards) < plan.num_shards_of(model)],
    )


def _num_rows_done(plan: Plan, done: bytearray) -> int:
    return sum(shard.num_rows for shard in plan.shards() if done[shard.index])
