"""`darkroom run`: the function that everything else serves."""

from rich.console import Console

from actors.parts.commit import probe
from actors.storage.output import Output, open_output
from actors.worker_process import ENGINE
from jobs.dispatch.dispatcher import Dispatcher
from jobs.fleet.budget import Budget
from jobs.fleet.cluster import with_output_settled
from jobs.fleet.shard_loop import RunWatch, generate_shards
from jobs.output.content_hashes import with_hashes
from jobs.output.disk_space import bytes_to_come, refuse_full_disk
from jobs.output.job_record import JobRecord, claim, plan_of, read_record, survey_of
from jobs.output.large_parts import for_store, refuse_large_parts
from jobs.output.lease import Lease
from jobs.output.parts import Parts, list_parts, output_totals, still_missing
from jobs.output.tally import Abandoned, Tally
from jobs.planning.plan import LargestPart, Plan, chosen_shards, expected_bytes, largest_part
from jobs.planning.plan_text import check_rows, print_notes, refuse_hopeless
from jobs.reports.finish import finish
from jobs.reports.run_result import RunResult
from jobs.reports.success import unfinish
from jobs.reports.summary import reported_totals
from jobs.signals import stopping_signals
from jobs.survey.survey import Survey
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted


def run_job(spec: JobSpec, console: Console, *, engine: str = ENGINE) -> RunResult:
    """Generate every row of the input that has no outcome yet, and return what came of it."""
    spec = with_output_settled(spec)
    output = open_output(spec.output.path, deadline_s=spec.errors.storage_deadline_s)
    with stopping_signals():
        record = read_record(output)
        surveyed = survey_of(spec, record)
        print_notes(surveyed, console)
        plan, record, largest = _plan_and_record(surveyed, record, output, console)
        parts = list_parts(output, record.num_shards)
        if parts.are_all and (reported := reported_totals(output, record, parts)):
            return RunResult(output=output.path, totals=reported)
        with Lease(output) as lease:
            unfinish(output)
            if not parts.are_all:
                plan = for_store(plan, output, largest)
            tally, abandoned = _generate_missing(plan, output, parts, lease, console, engine)
            abandoned = still_missing(abandoned, output, record.num_shards)
            if abandoned:
                totals = output_totals(output, record.num_shards)
            else:
                lease.confirm(tally)
                totals = finish(output, record, tally.figures())
        return RunResult(
            output=output.path,
            totals=totals,
            num_missing=len(abandoned),
            rows_tried=tally.rows,
            images_generated=tally.images,
            abandoned=tuple(abandoned),
            failures=tally.failures,
        )


def _plan_and_record(
    surveyed: Survey, record: JobRecord | None, output: Output, console: Console
) -> tuple[Plan, JobRecord, LargestPart | None]:
    """The output's recorded plan and its record; an output without a record is planned and recorded first.

    Then there is an estimate of its largest part, too. RefusedError where this spec or input is not the
    recorded one.
    """
    largest = None
    if record is None:
        plan, findings = check_rows(surveyed, console)
        refuse_hopeless(surveyed, findings)
        refuse_full_disk(output.path, expected_bytes(findings, plan.job))
        probe(output)
        largest = largest_part(findings, plan.job)
        refuse_large_parts(output, largest)
        record = claim(output, with_hashes(plan), findings)
    return plan_of(record, surveyed, output.path), record, largest


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
    if sum(done):
        refuse_full_disk(output.path, bytes_to_come(output, len(done)))
        console.print(
            f"resuming: {sum(done):,} of {counted(len(done), 'part')} already saved, "
            f"{num_missing:,} left to generate"
        )
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
