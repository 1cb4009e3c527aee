"""The error budget: stops a hopeless run early, and judges at the end whether too much has failed."""

from collections.abc import Iterator, Mapping

from jobs.fleet.pool import Tick
from jobs.output.figures import codes_text
from jobs.output.tally import Abandoned
from jobs.reports.run_result import RunResult, failure_lines
from schemas.errors import BudgetError
from schemas.job import FailedRows, merge_failed_rows
from schemas.spec.job_spec import ErrorsSpec
from schemas.wording.amounts import counted

HOPELESS_ROWS = 100
"""Failed rows after which a run without a single result stops: to go on would cost money and give nothing."""

MAX_REASONS = 3
"""Error codes that the message names."""


class Budget:
    """Watches the results of a run's first rows, and stops the run if every one of them fails."""

    def __init__(self, errors: ErrorsSpec) -> None:
        self._allows_all = errors.max_rate == 1
        self._has_result = False
        self._failures: Mapping[str, FailedRows] = {}
        """By error_code, failed rows that the plan did not foresee, in shards that are done."""

    def watch(self, tick: Tick) -> None:
        """Raise BudgetError once HOPELESS_ROWS rows have failed and no row has a result."""
        for report in tick.reports:
            self._has_result |= bool(report.ok or report.filtered)
            self._failures = merge_failed_rows([self._failures, report.unforeseen])
        self._has_result |= any(snapshot.images for snapshot in tick.unfinished)
        if self._has_result or self._allows_all:
            return
        failures = merge_failed_rows([self._failures, *(snapshot.unforeseen for snapshot in tick.unfinished)])
        num_rows = sum(failure.num_rows for failure in failures.values())
        if num_rows >= HOPELESS_ROWS:
            shown = "\n".join(failure_lines(failures, MAX_REASONS))
            raise BudgetError(
                f"stopped: the first {num_rows:,} rows that were tried all failed.\n{shown}\n"
                "Nothing is lost. Run again to continue; --set errors.max_rate=1 turns this check off"
            )


def judge(errors: ErrorsSpec, result: RunResult) -> None:
    """Raise BudgetError if a part is missing or was left out, or if more rows failed than the spec allows."""
    if result.num_missing or result.abandoned:
        raise BudgetError(". ".join(_lacking(errors, result)))
    totals = result.totals
    if totals.rows and totals.failed / totals.rows > errors.max_rate:
        raise BudgetError(
            f"{totals.failed:,} of {counted(totals.rows, 'row')} failed ({codes_text(totals.error_codes)}), "
            f"more than errors.max_rate ({errors.max_rate:g}) allows; the output has the error_message of "
            "each"
        )


def _lacking(errors: ErrorsSpec, result: RunResult) -> Iterator[str]:
    """What the output lacks, why, and what to do, in sentences without their full stops."""
    kept = [abandoned for abandoned in result.abandoned if abandoned.shard.again is not None]
    lost = [abandoned for abandoned in result.abandoned if abandoned.shard.again is None]
    if result.num_missing:
        yield f"missing parts: {result.num_missing:,}"
        yield from _reasons(errors, lost)
        yield "`darkroom run` generates them"
    if kept:
        yield f"parts that keep their failed rows: {len(kept):,}"
        yield from _reasons(errors, kept)
        yield "`darkroom retry` tries them again"


def _reasons(errors: ErrorsSpec, abandoned: list[Abandoned]) -> Iterator[str]:
    """Why shards are left out, and the reason of the first."""
    for first in abandoned[:1]:
        yield (
            f"A part is left out after errors.max_attempts ({errors.max_attempts}) failures, or when its "
            "workers were taken away too often"
        )
        yield f"The first is {first.shard.name}: {first.reason.removesuffix('.')}"
