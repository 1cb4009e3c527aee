"""The error budget: when a run is plainly hopeless, and when too much has failed in the end."""

from collections.abc import Mapping

from jobs.dispatch.pool import Tick
from jobs.output.parts import Totals
from jobs.output.tally import Abandoned
from schemas.errors import BudgetError
from schemas.job import FailedRows, merge_failed_rows
from schemas.spec.job_spec import ErrorsSpec

HOPELESS_ROWS = 100
"""That fail before any is made: more of the same would be paid for with nothing to show for it."""

MAX_REASONS = 3
MAX_MESSAGE_LENGTH = 300


class Budget:
    """Watches what comes of the first rows of a run."""

    def __init__(self, errors: ErrorsSpec) -> None:
        self._allows_all = errors.max_rate == 1
        self._any_made = False
        self._failures: Mapping[str, FailedRows] = {}
        """That the plan did not foresee, in shards that are done."""

    def watch(self, tick: Tick) -> None:
        """BudgetError once HOPELESS_ROWS rows have failed and none is made."""
        if tick.report:
            self._any_made |= bool(tick.report.ok or tick.report.filtered)
            self._failures = merge_failed_rows([self._failures, tick.report.unforeseen])
        self._any_made |= any(made.images for made in tick.unfinished)
        if self._any_made or self._allows_all:
            return
        failures = merge_failed_rows([self._failures, *(made.unforeseen for made in tick.unfinished)])
        rows = sum(failure.num_rows for failure in failures.values())
        if rows >= HOPELESS_ROWS:
            raise BudgetError(
                f"stopped: the first {rows:,} rows that were tried all failed.\n{_reasons(failures)}\n"
                "Nothing is lost: run again to go on, with --set errors.max_rate=1 to be stopped no more"
            )


def _reasons(failures: Mapping[str, FailedRows]) -> str:
    """The commonest ones, each on a line."""
    commonest = sorted(failures.items(), key=lambda item: -item[1].num_rows)
    lines = [
        f"  {failure.num_rows:,} {code}, such as: {failure.message[:MAX_MESSAGE_LENGTH]}"
        for code, failure in commonest[:MAX_REASONS]
    ]
    others = sum(failure.num_rows for _, failure in commonest[MAX_REASONS:])
    return "\n".join([*lines, f"  {others:,} others"] if others else lines)


def judge(errors: ErrorsSpec, totals: Totals, abandoned: tuple[Abandoned, ...]) -> None:
    """BudgetError where more went wrong than the spec allows."""
    if abandoned:
        first = abandoned[0]
        raise BudgetError(
            f"parts that are missing: {len(abandoned):,}. Making each of them failed "
            f"errors.max_attempts times ({errors.max_attempts}) or more. "
            f"The first is {first.shard.name}: {first.reason.removesuffix('.')}. Run again to try once more"
        )
    if totals.rows and totals.failed / totals.rows > errors.max_rate:
        codes = ", ".join(f"{count:,} {code}" for code, count in totals.error_codes)
        raise BudgetError(
            f"{totals.failed:,} of {totals.rows:,} rows failed ({codes}), more than errors.max_rate "
            f"({errors.max_rate:g}) allows; each one's error_message is in the output"
        )
