"""The result of a run, for the terminal and the exit code."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console

from jobs.output.figures import RunFigures, Totals, generated_text, outcomes_text
from jobs.output.tally import Abandoned
from schemas.job import FailedRows
from schemas.wording.amounts import counted
from schemas.wording.next_commands import command, next_lines
from schemas.wording.printable import escaped

MAX_CODES = 10
"""Error codes that the result names."""
MAX_MESSAGE_LENGTH = 300
"""Characters of one row's error message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of a run."""

    output: str
    """The URI of the output."""
    totals: Totals
    """The totals of the whole job."""
    num_missing: int = 0
    """Parts that the output lacks."""
    run: RunFigures = field(default_factory=RunFigures)
    """What this run has done."""
    abandoned: tuple[Abandoned, ...] = ()
    """Shards that this run has left out. If it was a retry, their parts stay as they were."""
    failures: Mapping[str, FailedRows] = field(default_factory=dict)
    """The rows that failed in this run, by error_code."""


def print_result(result: RunResult, console: Console, spec: str) -> None:
    """Print what the run has generated, the totals, where the output is, and the commands that come next.

    `spec`: the path of the job's YAML file, as the commands have it.
    """
    totals = result.totals
    generated = generated_text(result.run) if result.run.rows or result.abandoned else "nothing to do"
    failed = "".join(f"{line}\n" for line in failure_lines(result.failures, MAX_CODES))
    # The total counts the failed rows of earlier runs too.
    scope = f"{result.run.failed:,} failed in this run:\n" if 0 < result.run.failed < totals.failed else ""
    console.print(
        f"{generated}; total: {outcomes_text(totals)}\n"
        f"{scope}{failed}"
        f"output: {result.output}"
        + ("" if result.num_missing else f"\ncontact sheet: {result.output}/contact-sheet.html"),
        highlight=False,
        soft_wrap=True,
    )
    for line in next_lines(_next_commands(result, spec)):
        console.print(escaped(line), highlight=False, soft_wrap=True)


def _next_commands(result: RunResult, spec: str) -> list[tuple[str, str]]:
    """(command, purpose) of the three commands that are most likely to be wanted now."""
    output = result.output
    commands = [
        (command("verify", output), "checks that every row has one outcome and every image is intact"),
        (command("replay", output, "ROW_ID"), "generates one row again and compares it"),
        (command("status", output), "shows how far the job is, also from another machine"),
    ]
    if result.totals.failed:
        commands.insert(0, (command("retry", spec), "generates the failed rows again"))
    if result.num_missing:
        commands.insert(0, (command("run", spec), "generates the missing parts"))
    return commands[:3]


def failure_lines(failures: Mapping[str, FailedRows], most: int) -> list[str]:
    """A line for each of the `most` frequent codes, with the message of one row, and one for the others."""
    ordered = sorted(failures.items(), key=lambda item: -item[1].num_rows)
    lines = [
        f"  {counted(failed.num_rows, 'row')} with {code}, such as: {failed.message[:MAX_MESSAGE_LENGTH]}"
        for code, failed in ordered[:most]
    ]
    num_others = sum(failed.num_rows for _, failed in ordered[most:])
    others = [f"  {counted(num_others, 'row')} with other error codes"] if num_others else []
    return [escaped(line) for line in [*lines, *others]]
