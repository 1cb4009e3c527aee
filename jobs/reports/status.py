"""`darkroom status`: the progress of a job, read from its output alone, on any machine."""

import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.text import Text

from actors.storage.output import Output, open_output
from jobs.output.figures import generated_text, outcomes_text, rate_text
from jobs.output.job_record import require_record
from jobs.output.lease import is_alive, read_lease
from jobs.output.parts import list_parts, totals_of
from jobs.reports.summary import Summary, current_summary
from schemas.wording.amounts import counted, duration
from schemas.wording.printable import escaped

WATCH_EVERY_S = 5.0
"""How long a watched job is left alone between two looks, each of which reads the footers of all parts."""


def print_status(path: str, console: Console) -> None:
    """Print the parts that are done, the rows by status, and what is known about the driver."""
    for line in _status_of(open_output(path)).lines:
        console.print(escaped(line), highlight=False, soft_wrap=True)


def watch_status(path: str, console: Console) -> None:
    """Show the status, and again whenever it has changed, until the job is finished, or until Ctrl-C.

    On a terminal it stays in its place; in a log, each change is printed.
    """
    output, shown = open_output(path), None
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or nullcontext(), suppress(KeyboardInterrupt):
        while not (shown and shown.is_finished):
            if shown:
                time.sleep(WATCH_EVERY_S)
            status = _status_of(output)
            text = Text("\n".join(escaped(line) for line in status.lines))
            if live:
                live.update(text, refresh=True)
            elif status != shown:
                console.print(text, soft_wrap=True)
            shown = status


@dataclass(frozen=True, slots=True)
class _Status:
    lines: tuple[str, ...]
    is_finished: bool


def _status_of(output: Output) -> _Status:
    """The lines of the status, and whether the job is finished."""
    record = require_record(output)
    parts = list_parts(output, record.shard_names)
    summary = current_summary(output, record, parts)
    totals = summary.totals if summary else totals_of(output, parts)
    lines = (
        f"{record.name}: {len(parts):,} of {counted(record.num_shards, 'part')}, "
        f"{totals.rows:,} of {counted(record.num_rows, 'row')}",
        outcomes_text(totals),
        _driver(output, summary, are_all=parts.are_all),
    )
    return _Status(lines, is_finished=summary is not None)


def _driver(output: Output, summary: Summary | None, *, are_all: bool) -> str:
    """When the job was finished, or which driver is running and how far it is.

    `summary`: that of a finished job; `are_all`: whether all parts exist.
    """
    if summary:
        run = f"; the last run {generated_text(summary.last_run)}" if summary.last_run else ""
        return f"finished at {summary.finished_at or 'an unknown time'}{run}"
    lease = read_lease(output)
    if lease is None or not is_alive(lease):
        aim = "write its reports, which are missing or older than the parts" if are_all else "resume"
        return f"no driver is running; run the job again to {aim}"
    driver = f"the driver is process {lease.pid} on {lease.host}, last heard from {lease.age_s:.0f} s ago"
    if lease.rows_done is None:
        return driver
    left = lease.seconds_left
    return (
        f"{driver}: about {counted(lease.rows_done, 'row')} done, {rate_text(lease.images_per_second)}"
        + (f", {duration(left)} left" if left is not None else "")
        + f", {counted(lease.workers, 'worker')}"
    )
