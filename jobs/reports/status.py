"""`darkroom status`: how far a job is, told by its output alone, from any machine."""

from rich.console import Console

from actors.storage.output import Output, open_output
from jobs.output.job_record import require_record
from jobs.output.lease import is_alive, read_lease
from jobs.output.parts import Totals, list_parts, totals_of
from jobs.reports.summary import read_summary
from schemas.wording.amounts import duration
from schemas.wording.printable import printable


def print_status(path: str, console: Console) -> None:
    """Parts done, rows by outcome, and what the driver last said."""
    output = open_output(path)
    record = require_record(output)
    parts = list(list_parts(output, record.num_shards))
    totals = totals_of(output, parts)
    rows = sum(file.num_rows for file in record.files)
    lines = [
        f"{record.name}: {len(parts):,} of {record.num_shards:,} parts, {totals.rows:,} of {rows:,} rows",
        _outcomes(totals),
        _driver(output, done=len(parts) == record.num_shards),
    ]
    for line in lines:
        console.print(printable(line), highlight=False, soft_wrap=True)


def _outcomes(totals: Totals) -> str:
    codes = ", ".join(f"{count:,} {code}" for code, count in totals.error_codes)
    return (
        f"{totals.images:,} images; {totals.ok:,} rows ok, {totals.filtered:,} filtered, "
        f"{totals.failed:,} failed" + (f" ({codes})" if codes else "")
    )


def _driver(output: Output, *, done: bool) -> str:
    summary = read_summary(output) if done else None
    if summary:
        return f"done at {summary.finished_at or 'a time that nobody wrote down'}"
    lease = read_lease(output)
    if lease is None or not is_alive(lease):
        return "no driver is at work: run the job again to go on"
    said = f"process {lease.pid} on {lease.host} is at work, heard of {lease.age_s:.0f} s ago"
    if lease.rows_done is None:
        return said
    left = lease.seconds_left
    return (
        f"{said}: {lease.rows_done:,} rows, {lease.images_per_second:.1f} images/s"
        + (f", {duration(left)} left" if left is not None else "")
        + f", {lease.workers} workers"
    )
