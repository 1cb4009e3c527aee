"""The error budget: a run that is plainly hopeless stops early and says why."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest

from actors.storage.output import open_output
from jobs.fleet.budget import Budget, judge
from jobs.fleet.pool import Tick
from jobs.output.figures import Totals
from jobs.output.parts import still_missing
from jobs.output.tally import Abandoned
from jobs.reports.run_result import RunResult
from schemas.errors import BudgetError
from schemas.job import FailedRows, ShardReport, ShardSnapshot
from schemas.output_layout import ShardNames
from schemas.spec.job_spec import ErrorsSpec
from tests.support.in_process import job_spec, plan_for
from tests.support.running import text_rows, write_rows


def failures(**codes: int) -> Mapping[str, FailedRows]:
    return {code: FailedRows(num_rows=num, message=f"a {code}") for code, num in codes.items()}


def tick(*unfinished: ShardSnapshot, report: ShardReport | None = None) -> Tick:
    return Tick(reports=[report] if report else [], unfinished=unfinished, num_workers=1)


def done(*, ok: int = 0, filtered: int = 0, **codes: int) -> ShardReport:
    """A shard's report, `codes` being what the plan did not foresee."""
    return ShardReport(
        index=0,
        committed=True,
        ok=ok,
        filtered=filtered,
        # Of rows with which nothing can be made the plan has warned.
        failed=1000,
        images=ok,
        size_bytes=1,
        failures=failures(**codes, unknown_task=1000 - sum(codes.values())),
        unforeseen=failures(**codes),
        seconds={},
        models_loaded=(),
        num_loads=0,
        worker="w",
        cpu_seconds=0.0,
        peak_rss_bytes=0,
    )


def test_a_run_of_which_a_hundred_rows_failed_and_none_is_made_ends_with_the_commonest_reasons() -> None:
    """Of shards that are done and of those under way together."""
    budget = Budget(ErrorsSpec())
    budget.watch(tick(report=done(nonfinite_image=40, unreadable_image=3, generation_error=2)))
    budget.watch(tick(ShardSnapshot(unforeseen=failures(nonfinite_image=30)), ShardSnapshot()))

    with pytest.raises(BudgetError) as caught:
        budget.watch(
            tick(ShardSnapshot(unforeseen=failures(nonfinite_image=30, a=1)), report=done(unreadable_uri=24))
        )

    assert str(caught.value).splitlines() == [
        "stopped: the first 100 rows that were tried all failed.",
        "  70 rows with nonfinite_image, such as: a nonfinite_image",
        "  24 rows with unreadable_uri, such as: a unreadable_uri",
        "  3 rows with unreadable_image, such as: a unreadable_image",
        "  3 rows with other error codes",
        "Nothing is lost. Run again to continue; --set errors.max_rate=1 turns this check off",
    ]


@pytest.mark.parametrize(
    "first",
    [tick(report=done(ok=1)), tick(report=done(filtered=1)), tick(ShardSnapshot(images=1))],
    ids=["made", "filtered", "in-making"],
)
def test_once_an_image_is_made_a_run_is_not_hopeless(first: Tick) -> None:
    """However many rows fail after it: the budget is for the end."""
    budget = Budget(ErrorsSpec())

    budget.watch(first)
    budget.watch(tick(report=done(nonfinite_image=1000)))


def test_rows_that_the_plan_has_named_do_not_make_a_run_hopeless() -> None:
    """They form shards of their own, which may come first."""
    budget = Budget(ErrorsSpec())

    for _ in range(5):
        budget.watch(tick(report=done()))


def test_a_job_in_which_all_rows_may_fail_is_not_stopped() -> None:
    """`max_rate: 1` says so."""
    Budget(ErrorsSpec(max_rate=1)).watch(tick(report=done(nonfinite_image=1000)))


@pytest.mark.parametrize(("failed", "enough"), [(2, True), (3, False)])
def test_as_many_rows_may_fail_as_the_spec_allows(failed: int, enough: bool) -> None:
    """Exactly so many are not too many."""
    totals = Totals(ok=4 - failed, failed=failed)

    with nullcontext() if enough else pytest.raises(BudgetError, match=f"{failed} of 4 rows failed"):
        judge(ErrorsSpec(max_rate=0.5), RunResult(output="out", totals=totals))


def test_a_part_that_came_after_all_is_not_told_as_missing(tmp_path: Path) -> None:
    """A worker that was given up on, with its shard, may have been about to write it."""
    plan = plan_for(
        job_spec(
            write_rows(tmp_path / "in.parquet", text_rows(8)), tmp_path / "out", batching={"shard_rows": 2}
        )
    )
    abandoned = [Abandoned(shard=shard, reason="it made no progress") for shard in plan.shards()]
    part = tmp_path / "out" / "data" / f"{abandoned[1].shard.name}.parquet"
    part.parent.mkdir(parents=True)
    part.touch()

    left = still_missing(abandoned, open_output(str(tmp_path / "out")), ShardNames([len(abandoned)]))

    assert left == [abandoned[0], *abandoned[2:]]
