"""The result of a run, for the terminal and the exit code."""

from dataclasses import dataclass

from rich.console import Console

from jobs.output.parts import Totals
from jobs.output.tally import Abandoned
from schemas.wording.amounts import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of a run."""

    output: str
    """The URI of the output."""
    totals: Totals
    """The totals of the whole job."""
    rows_tried: int
    """Rows that this run has generated or recorded as failed."""
    images_generated: int
    """Images that this run has generated."""
    abandoned: tuple[Abandoned, ...]
    """Shards that this run has left out."""


def print_result(result: RunResult, console: Console) -> None:
    """Print what the run has generated, the totals, and where the output and its contact sheet are."""
    totals = result.totals
    generated = (
        f"generated {counted(result.images_generated, 'image')}"
        if result.rows_tried or result.abandoned
        else "nothing to do"
    )
    console.print(
        f"{generated}; total: {counted(totals.ok, 'row')} ok, {totals.filtered:,} filtered, "
        f"{totals.failed:,} failed\n"
        f"output: {result.output}"
        + ("" if result.abandoned else f"\ncontact sheet: {result.output}/contact-sheet.html"),
        highlight=False,
        soft_wrap=True,
    )
