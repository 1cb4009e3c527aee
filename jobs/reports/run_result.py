"""What a run has done, for the terminal and the exit code."""

from dataclasses import dataclass

from rich.console import Console

from jobs.output.parts import Totals
from jobs.output.tally import Abandoned


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended."""

    output: str
    totals: Totals
    rows_tried: int
    """By this run: made or recorded as failed."""
    images_made: int
    """By this run."""
    abandoned: tuple[Abandoned, ...]


def print_result(result: RunResult, console: Console) -> None:
    """What came of it, and where."""
    totals = result.totals
    made = (
        f"{result.images_made:,} images made"
        if result.rows_tried or result.abandoned
        else "nothing was left to do"
    )
    console.print(
        f"{made}; all in all {totals.ok:,} rows ok, {totals.filtered:,} filtered, {totals.failed:,} failed\n"
        f"output: {result.output}"
        + ("" if result.abandoned else f"\nlook at it: {result.output}/contact-sheet.html"),
        highlight=False,
        soft_wrap=True,
    )
