"""`darkroom retry`: rows whose status is `failed` are generated again, and their parts are replaced."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from actors.storage.output import Output, open_output
from actors.worker_process import ENGINE
from jobs.dispatch.dispatcher import Dispatcher
from jobs.fleet.cluster import with_output_settled
from jobs.fleet.shard_loop import RunWatch, generate_shards
from jobs.output.job_record import plan_of, require_record
from jobs.output.lease import Lease
from jobs.output.part_footers import read_footers
from jobs.output.parts import PartFile, list_parts, output_totals
from jobs.output.tally import Tally
from jobs.planning.plan import Plan
from jobs.planning.survey import make_survey
from jobs.reports.finish import finish
from jobs.reports.run_result import RunResult
from jobs.signals import stopping_signals
from schemas.errors import SpecError
from schemas.job import Shard
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
        plan = plan_of(record, make_survey(spec), output.path)
        parts = list(list_parts(output, record.num_shards))
        shards = _shards_to_retry(plan, output, parts, tuple(only))
        tally = Tally(rows_total=sum(shard.num_rows for shard in shards), rows_before=0)
        dispatcher = _dispatcher(shards, spec.errors.max_attempts)
        totals = None
        if shards:
            with Lease(output) as lease:
                console.print(f"retrying the failed rows of {counted(len(shards), 'part')}")
                generate_shards(plan, dispatcher, RunWatch(tally=tally, lease=lease), console, engine)
                # A retry replaces parts and adds none, so a part that was missing is still missing.
                if len(parts) == record.num_shards:
                    lease.confirm(tally)
                    totals = finish(output, record, tally.figures())
        return RunResult(
            output=output.path,
            totals=totals or output_totals(output, record.num_shards),
            rows_tried=tally.rows,
            images_generated=tally.images,
            abandoned=tuple(dispatcher.abandoned),
            failures=tally.failures,
        )


def _shards_to_retry(
    plan: Plan, output: Output, parts: Sequence[PartFile], only: tuple[str, ...]
) -> list[Shard]:
    """The shards whose parts have failed rows with a code in `only`, or any failed rows if it is empty.

    SpecError for a code that no part has.
    """
    codes_of = {
        part.index: footer.error_codes
        for part, footer in zip(parts, read_footers(output, parts), strict=True)
    }
    every_code = sorted({code for codes in codes_of.values() for code in codes})
    for code in only:
        if code not in every_code:
            choices = f"; the codes of failed rows are {', '.join(every_code)}" if every_code else ""
            raise SpecError(f"--only {code}: no row failed with it{did_you_mean(code, every_code)}{choices}")
    chosen = {index for index, codes in codes_of.items() if any(not only or code in only for code in codes)}
    return [replace(shard, again=only) for shard in plan.shards() if shard.index in chosen]


def _dispatcher(shards: Sequence[Shard], max_attempts: int) -> Dispatcher:
    """The dispatcher of these shards."""
    by_model: defaultdict[str, list[Shard]] = defaultdict(list)
    for shard in shards:
        by_model[shard.model].append(shard)
    return Dispatcher(by_model, max_attempts=max_attempts)
