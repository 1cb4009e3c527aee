"""`darkroom run`: the function that everything else serves."""

from array import array
from collections import defaultdict
from dataclasses import dataclass

from rich.console import Console

from actors.parts.commit import probe
from actors.storage.output import Output, open_output
from actors.worker_process import ENGINE
from jobs.dispatch.dispatcher import Dispatcher
from jobs.fleet.budget import Budget
from jobs.fleet.cluster import with_output_settled
from jobs.fleet.shard_loop import RunWatch, generate_shards
from jobs.output.disk_space import bytes_to_come, refuse_full_disk
from jobs.output.job_record import JobRecord, claim, plan_of, read_record
from jobs.output.lease import Lease
from jobs.output.parts import done_shards, output_totals, still_missing
from jobs.output.tally import Abandoned, Tally
from jobs.planning.plan import Plan, ShardFinder, expected_bytes
from jobs.planning.plan_text import check_rows, print_notes, refuse_hopeless
from jobs.planning.survey import Survey, make_survey
from jobs.reports.finish import finish, is_finished
from jobs.reports.run_result import RunResult
from jobs.signals import stopping_signals
from schemas.job import Shard
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted


def run_job(spec: JobSpec, console: Console, *, engine: str = ENGINE) -> RunResult:
    """Generate every row of the input that has no outcome yet, and return what came of it."""
    spec = with_output_settled(spec)
    output = open_output(spec.output.path, deadline_s=spec.errors.storage_deadline_s)
    with stopping_signals():
        surveyed = make_survey(spec)
        print_notes(surveyed, console)
        plan, record = _plan_and_record(surveyed, output, console)
        done = done_shards(output, record.num_shards)
        if all(done) and is_finished(output):
            totals = output_totals(output, record.num_shards)
            return RunResult(output=output.path, totals=totals)
        with Lease(output) as lease:
            tally, abandoned = _generate_missing(plan, output, done, lease, console, engine)
            abandoned = still_missing(abandoned, output, record.num_shards)
            if abandoned:
                totals = output_totals(output, record.num_shards)
            else:
                lease.confirm(tally)
                totals = finish(output, record, tally.figures())
        return RunResult(
            output=output.path,
            totals=totals,
            rows_tried=tally.rows,
            images_generated=tally.images,
            abandoned=tuple(abandoned),
            failures=tally.failures,
        )


def _plan_and_record(surveyed: Survey, output: Output, console: Console) -> tuple[Plan, JobRecord]:
    """The output's recorded plan and its record; a new output is planned and recorded first.

    RefusedError where this spec or input is not the recorded one.
    """
    record = read_record(output)
    if record is None:
        plan, findings = check_rows(surveyed, console)
        refuse_hopeless(surveyed, findings)
        refuse_full_disk(output.path, expected_bytes(findings, plan.job))
        probe(output)
        record = claim(output, plan, findings)
    return plan_of(record, surveyed, output.path), record


def _generate_missing(
    plan: Plan, output: Output, done: bytearray, lease: Lease, console: Console, engine: str
) -> tuple[Tally, list[Abandoned]]:
    """Generate the parts that are not `done` (one byte per shard); the tally, and the shards left out."""
    tally = Tally(rows_total=plan.num_rows, rows_before=_num_rows_done(plan, done))
    num_missing = len(done) - sum(done)
    if not num_missing:
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
    missing: defaultdict[str, array[int]] = defaultdict(lambda: array("Q"))
    working: set[str] = set()
    for shard in plan.shards():
        if done[shard.index]:
            working.add(shard.model)
        else:
            missing[shard.model].append(shard.index)
    finder = ShardFinder(plan)
    return Dispatcher(
        {model: _MissingShards(indices, finder) for model, indices in missing.items()},
        max_attempts=plan.job.spec.errors.max_attempts,
        working=working,
    )


@dataclass(frozen=True, slots=True)
class _MissingShards:
    """The shards without a part, of which only the indices are in memory."""

    indices: "array[int]"
    finder: ShardFinder

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int, /) -> Shard:
        return self.finder.shard_at(self.indices[position])


def _num_rows_done(plan: Plan, done: bytearray) -> int:
    return sum(shard.num_rows for shard in plan.shards() if done[shard.index])
