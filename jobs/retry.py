"""`darkroom retry`: rows whose outcome is `failed` are made again, each in its place."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from actors.storage.output import Output, open_output
from actors.worker_process import ENGINE
from jobs.dispatch.cluster import with_output_settled
from jobs.dispatch.dispatcher import Dispatcher
from jobs.dispatch.shard_loop import make_shards
from jobs.output.job_record import plan_of, require_record
from jobs.output.lease import Lease
from jobs.output.part_footers import read_footers
from jobs.output.parts import PartFile, list_parts, output_totals
from jobs.output.tally import Tally
from jobs.planning.plan import Plan
from jobs.planning.survey import survey
from jobs.reports.finish import finish
from jobs.reports.run_result import RunResult
from jobs.signals import stopping_signals
from schemas.errors import SpecError
from schemas.job import Shard
from schemas.spec.job_spec import JobSpec
from schemas.wording.nearest import nearest


def retry_job(
    spec: JobSpec, console: Console, only: Sequence[str] = (), *, engine: str = ENGINE
) -> RunResult:
    """Make failed rows again, those with one of the codes `only` or all; every other row stays as it is."""
    spec = with_output_settled(spec, console)
    output = open_output(spec.output.path, deadline_s=spec.errors.storage_deadline_s)
    with stopping_signals():
        record = require_record(output)
        plan = plan_of(record, survey(spec), output.path)
        parts = list(list_parts(output, record.num_shards))
        shards = _shards_to_retry(plan, output, parts, tuple(only))
        tally = Tally(rows_total=sum(shard.num_rows for shard in shards), rows_before=0)
        dispatcher = _dispatcher(shards, spec.errors.max_attempts)
        totals = None
        if shards:
            with Lease(output) as lease:
                console.print(f"making failed rows of {len(shards):,} parts again")
                make_shards(plan, dispatcher, tally, lease, console, engine)
                # Parts are replaced here and none is added: what was missing still is.
                if len(parts) == record.num_shards:
                    lease.confirm(tally)
                    totals = finish(output, record, tally.figures())
        return RunResult(
            output=output.path,
            totals=totals or output_totals(output, record.num_shards),
            rows_tried=tally.rows,
            images_made=tally.images,
            abandoned=tuple(dispatcher.abandoned),
        )


def _shards_to_retry(
    plan: Plan, output: Output, parts: Sequence[PartFile], only: tuple[str, ...]
) -> list[Shard]:
    """Those whose parts have failed rows of the wanted kind; SpecError for a code that no part has."""
    codes = {
        part.index: footer.error_codes
        for part, footer in zip(parts, read_footers(output, parts), strict=True)
    }
    found = Counter(code for mine in codes.values() for code in mine)
    for code in only:
        if code not in found:
            there = f"; there are {', '.join(sorted(found))}" if found else ""
            raise SpecError(f"--only {code}: no row failed with it{nearest(code, found)}{there}")
    wanted = {index for index, mine in codes.items() if any(not only or code in only for code in mine)}
    return [replace(shard, again=only) for shard in plan.shards() if shard.index in wanted]


def _dispatcher(shards: Sequence[Shard], max_attempts: int) -> Dispatcher:
    by_model: defaultdict[str, list[Shard]] = defaultdict(list)
    for shard in shards:
        by_model[shard.model].append(shard)
    return Dispatcher(
        {model: iter(mine) for model, mine in by_model.items()},
        {model: len(mine) for model, mine in by_model.items()},
        max_attempts=max_attempts,
    )
