"""A plan as a person reads it."""

from pathlib import PurePath

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from actors.checkpoints.component_files import bytes_shared
from jobs.planning.plan import Plan, expected_bytes, make_plan
from jobs.planning.row_scan import MAX_EXAMPLES, BadRow, Findings
from jobs.planning.survey import Survey
from schemas.errors import SpecError
from schemas.job import NO_MODEL, Job
from schemas.wording.amounts import size_text
from schemas.wording.printable import escaped

LARGE_PART_BYTES = 500_000_000
"""Hugging Face's advice for one Parquet file, at most."""
MAX_NAMED = 5
"""Rows in a refusal."""
MAX_ROUTE_LINES = 30
"""Rows may ask for any number of sizes; the commonest are listed."""


def check_rows(found: Survey, console: Console, max_examples: int = MAX_EXAMPLES) -> tuple[Plan, Findings]:
    """Make the plan, with a bar on a terminal while rows are read."""
    columns = (TextColumn("checking rows"), BarColumn(30), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=found.num_rows)
        return make_plan(found, lambda rows: progress.advance(task, rows), max_examples)


def refuse_hopeless(found: Survey, findings: Findings, *, listed: bool = False) -> None:
    """SpecError where more rows cannot be made than the job's error budget allows; it names some, unless they
    are `listed` already."""
    bad, allowed = sum(findings.num_bad.values()), found.job.spec.errors.max_rate
    if bad / found.num_rows <= allowed:
        return
    codes = ", ".join(f"{count:,} {code}" for code, count in findings.num_bad.items())
    where = "; they are listed" if listed else _named(findings)
    raise SpecError(
        f"{bad:,} of {found.num_rows:,} rows cannot be made ({codes}), "
        f"more than errors.max_rate ({allowed:g}) allows{where}\n"
        f"Correct the rows; or, to have them recorded as failed and the others made, "
        f"--set errors.max_rate={_enough(bad, found.num_rows)}"
    )


def _named(findings: Findings) -> str:
    """A few bad rows, each on a line."""
    rows = "".join(f"\n  {describe_bad_row(row)}" for row in findings.bad_rows[:MAX_NAMED])
    more = "\n`darkroom plan` lists more of them" if len(findings.bad_rows) > MAX_NAMED else ""
    return f":{rows}{more}"


def _enough(bad: int, rows: int) -> float:
    """The rate, rounded up to three digits so that it is enough."""
    return -(-bad * 1000 // rows) / 1000


def describe_bad_row(bad: BadRow) -> str:
    """`rows.parquet row 12 (owl): invalid_size: height is ...`"""
    named = f" ({bad.row_id})" if bad.row_id else ""
    return escaped(f"{PurePath(bad.uri).name} row {bad.row}{named}: {bad.problem}")


def print_plan(plan: Plan, findings: Findings, console: Console) -> None:
    """Routes, mistakes, shards and size."""
    print_columns(plan.job, console)
    console.print(_models_table(plan.job))
    saved = bytes_shared(plan.job.checkpoints)
    if saved:
        console.print(f"{size_text(saved)} of weights are the same in two checkpoints and are held once")
    _print_safety(plan.job, console)
    console.print(_routes_table(findings))
    _print_bad_rows(plan, findings, console)
    _print_output(plan, findings, console)


def print_columns(job: Job, console: Console) -> None:
    """The columns that are read by a foreign name: a mapping is never silent."""
    for field, column in job.columns.recognised.items():
        console.print(escaped(f"column `{column}` is read as `{field}`"))


def _models_table(job: Job) -> Table:
    table = Table("model", "checkpoint", "recognised as", "size", "revision", title_justify="left")
    for name, card in job.models.items():
        size = size_text(card.weight_bytes) if card.weight_bytes else "on the Hub"
        kind = f"{card.family} ({card.pipeline}), {card.width}x{card.height}"
        table.add_row(name, card.checkpoint, kind, size, card.revision[:12])
    return table


def _print_safety(job: Job, console: Console) -> None:
    """Which models have a safety checker, and what becomes of what it flags: off and on are never silent."""
    safety = job.spec.safety
    checked = [name for name, card in job.models.items() if card.has_safety_checker]
    unchecked = [name for name in job.models if name not in checked]
    if checked:
        fate = {"drop": "dropped", "black": "stored as black ones", "keep": "stored as they are"}
        meaning = (
            f"pictures that it flags are {fate[safety.flagged]}, their rows filtered"
            if safety.checker == "on"
            else "switched off (safety.checker: off), so nothing is flagged"
        )
        console.print(f"safety checker in {', '.join(checked)}: {meaning}", soft_wrap=True)
    if unchecked:
        console.print(f"no safety checker in {', '.join(unchecked)}: nothing is flagged", soft_wrap=True)


def _routes_table(findings: Findings) -> Table:
    table = Table("route", "model", "size", title_justify="left")
    table.add_column("rows", justify="right")
    table.add_column("images", justify="right")
    commonest = sorted(findings.counts, key=lambda count: -count.rows)
    shown, others = set(commonest[:MAX_ROUTE_LINES]), commonest[MAX_ROUTE_LINES:]
    for count in (count for count in findings.counts if count in shown):
        size = "the input's" if count.size == "input" else count.size
        table.add_row(count.route, count.model, size, f"{count.rows:,}", f"{count.images:,}")
    if others:
        rows, images = sum(count.rows for count in others), sum(count.images for count in others)
        table.add_row("others", "", f"{len(others):,} more", f"{rows:,}", f"{images:,}")
    return table


def _print_bad_rows(plan: Plan, findings: Findings, console: Console) -> None:
    for code, count in findings.num_bad.items():
        examples = [row for row in findings.bad_rows if row.problem.code == code]
        more = f", the first {len(examples):,} are" if count > len(examples) else ""
        console.print(f"{count:,} of {plan.num_rows:,} rows cannot be made: {code}{more}", style="bold")
        for row in examples:
            console.print(f"  {describe_bad_row(row)}", soft_wrap=True)
    if sum(findings.num_bad.values()) > len(findings.bad_rows):
        console.print("--bad-rows N names more of them", style="bold")


def _print_output(plan: Plan, findings: Findings, console: Console) -> None:
    spec = plan.job.spec
    total = expected_bytes(findings, plan.job)
    models = sum(bool(plan.num_shards_of(model)) for model in plan.job.models)
    nowhere = plan.num_shards_of(NO_MODEL)
    console.print(
        f"{_many(plan.num_rows, 'row')} in {_many(len(plan.files), 'file')} become "
        f"{_many(plan.num_shards, 'part')} of up to {_many(spec.batching.shard_rows, 'row')} "
        f"({_many(models, 'model')}"
        + (f", and {nowhere:,} of rows that no model takes" if nowhere else "")
        + f"); about {size_text(total)} of {spec.output.format} in {spec.output.path}",
        soft_wrap=True,
    )
    if total / max(plan.num_shards, 1) > LARGE_PART_BYTES:
        console.print(
            f"parts will be about {size_text(total // plan.num_shards)} each; viewers like them below "
            f"{size_text(LARGE_PART_BYTES)}: lower batching.shard_rows",
        )


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
