"""`darkroom retry`: rows whose status is `failed` are generated again, and their parts are replaced."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console

from actors.storage.output import Output, open_output
from actors.worker_process import ENGINE
from jobs.dispatch.dispatcher import Dispatcher
from jobs.fleet.cluster import with_output_settled
from jobs.fleet.shard_loop import RunWatch, generate_shards
from jobs.output.capacity import for_store
from jobs.output.job_record import require_record
from jobs.output.lease import Lease
from jobs.output.part_footers import read_footers
from jobs.output.parts import Parts, list_parts, output_totals
from jobs.output.resumption import plan_of, survey_of
from jobs.output.tally import Tally
from jobs.planning.known_failures import known_failures
from jobs.planning.plan import Plan, chosen_shards
from jobs.reports.finish import finish
from jobs.reports.run_result import RunResult
from jobs.reports.success import unfinish
from jobs.reports.summary import reported_totals
from jobs.signals import stopping_signals
from schemas.errors import FOUND_BY_PLAN, SpecError
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted
from schemas.wording.nearest import did_you_mean


def retry_job(
    spec: JobSpec, console: Console, only: Sequence[str] = (), *, engine: str = ENGINE
) -> RunResult:
    """Generate the failed rows again: those with a code in `only`, or all that may succeed if it is empty.

    Every other row stays as it is.
    """
    spec = with_output_settled(spec)
    output = open_output(spec.output.path, deadline_s=spec.errors.storage_deadline_s)
    with stopping_signals():
        record = require_record(output)
        plan = plan_of(record, survey_of(spec, record), output.path)
        parts = list_parts(output, record.shard_names)
        chosen, num_rows = _shards_to_retry(output, plan, parts, only, console)
        tally = Tally(rows_total=num_rows, rows_before=0)
        dispatcher = _dispatcher(plan, chosen, tuple(only))
        # An earlier driver may have been killed when it had replaced parts, and not yet written the reports.
        totals = None if any(chosen) else reported_totals(output, record, parts)
        if any(chosen) or (parts.are_all and not totals):
            with Lease(output) as lease:
                unfinish(output)
                if any(chosen):
                    console.print(
                        f"retrying {counted(num_rows, 'failed row')} of {counted(sum(chosen), 'part')}"
                    )
                    plan = for_store(plan, output, parts.largest_bytes)
                    watch = RunWatch(tally=tally, lease=lease)
                    generate_shards(plan, dispatcher, watch, console, engine)
                # A retry replaces parts and adds none, so a part that was missing is still missing.
                if parts.are_all:
                    lease.confirm(tally)
                    totals = finish(output, record, tally.figures())
        return RunResult(
            output=output.path,
            totals=totals or output_totals(output, record.shard_names),
            num_missing=record.num_shards - len(parts),
            run=tally.figures(),
            abandoned=tuple(dispatcher.abandoned),
            failures=tally.failures,
        )


def _shards_to_retry(
    output: Output, plan: Plan, parts: Parts, only: Sequence[str], console: Console
) -> tuple[bytearray, int]:
    """One byte per shard, 1 if its part has failed rows with a code in `only`; the number of these rows.

    If `only` is empty: 1 if it has failed rows whose values alone do not explain the failure, and the number
    of all failed rows of these parts. The others are printed. SpecError for a code that no part has.
    """
    chosen = bytearray(parts.num_shards)
    num_rows: dict[int, int] = {}
    """By shard, the failed rows that would be generated again."""
    every_code: set[str] = set()
    explicable: dict[int, Mapping[str, int]] = {}
    """By shard, the failed rows of parts whose failures the plan may have found."""
    for part, footer in zip(parts, read_footers(output, parts), strict=True):
        every_code.update(footer.error_codes)
        if footer.error_codes:
            num_rows[part.index] = sum(
                n for code, n in footer.error_codes.items() if not only or code in only
            )
        if only:
            chosen[part.index] = any(code in only for code in footer.error_codes)
        elif footer.error_codes.keys() <= FOUND_BY_PLAN:
            explicable |= {part.index: footer.error_codes} if footer.error_codes else {}
        else:
            chosen[part.index] = True
    for code in only:
        if code not in every_code:
            choices = f"; the codes of failed rows are {', '.join(sorted(every_code))}" if every_code else ""
            raise SpecError(
                f"--only {code}: no row failed with it{did_you_mean(code, sorted(every_code))}{choices}"
            )
    if explicable:
        _choose_inexplicable(plan, explicable, chosen, console)
    return chosen, sum(number for index, number in num_rows.items() if chosen[index])


def _choose_inexplicable(
    plan: Plan, explicable: Mapping[int, Mapping[str, int]], chosen: bytearray, console: Console
) -> None:
    """Choose each of these shards that has failed rows which the plan does not explain; print the others."""
    hopeless: Counter[str] = Counter()
    for index, known in known_failures(plan, explicable).items():
        chosen[index] = any(num_rows > known[code] for code, num_rows in explicable[index].items())
        if not chosen[index]:
            hopeless.update(explicable[index])
    if hopeless:
        codes = ", ".join(f"{count:,} {code}" for code, count in hopeless.most_common())
        console.print(
            f"not retried: {counted(hopeless.total(), 'row')} ({codes}). Their own values are at fault, so "
            "they would fail again. Correct the rows and give them to a job with an output.path of its own; "
            "--only CODE retries them all the same",
            soft_wrap=True,
        )


def _dispatcher(plan: Plan, chosen: bytearray, only: tuple[str, ...]) -> Dispatcher:
    """The dispatcher of the chosen shards (one byte per shard)."""
    shards = chosen_shards(plan, lambda shard: bool(chosen[shard.index]), again=only)
    return Dispatcher(shards, max_attempts=plan.job.spec.errors.max_attempts)
