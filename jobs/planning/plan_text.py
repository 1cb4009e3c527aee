"""The texts of `darkroom plan`: its tables, its bad rows, and the refusal of too many of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from actors.checkpoints.model_files import bytes_shared
from actors.storage.objects import MAX_PUT_BYTES
from actors.storage.uris import S3_SCHEME
from jobs.planning.graph_counts import graph_lines
from jobs.planning.plan import Plan, expected_bytes, largest_part, make_plan
from jobs.planning.readings import picture_lines, reading_lines
from jobs.planning.row_scan import MAX_EXAMPLES, BadRow, Findings, ReportProgress
from jobs.survey.survey import Survey, SurveyedFile
from schemas.errors import SpecError
from schemas.job import NO_MODEL, Job
from schemas.systems.image_prompts import IMAGE_PROMPT
from schemas.systems.model_card import UPCASTING_PIPELINES
from schemas.wording.amounts import counted, size_text
from schemas.wording.printable import escaped

LARGE_PART_BYTES = 500_000_000
"""The largest Parquet file that Hugging Face recommends."""
VAE_SHARE = ", about 9 % of the time of an image with 20 steps"
"""What decoding in float32 takes with XL, at any size: docs/batching.md has the calculation."""
MAX_NAMED = 5
"""The most rows that a refusal names."""
MAX_ADAPTER_LINES = 20
"""The most lines about single adapters."""
MAX_ROUTE_LINES = 30
"""The most lines of the table of routes. Rows may have any number of sizes; the commonest are listed."""


def check_rows(
    surveyed: Survey,
    console: Console,
    max_examples: int = MAX_EXAMPLES,
    earlier: Sequence[SurveyedFile] = (),
) -> tuple[Plan, Findings]:
    """The plan, and what its pass over all rows found. On a terminal, a bar shows the progress.

    What it reads in its own way is printed, and what is to be compiled. `earlier`: the files that the job has
    already.
    """
    with shown_rows(surveyed.num_rows, console) as report:
        planned, findings = make_plan(surveyed, report, max_examples, earlier)
    _print_lines([*reading_lines(planned, findings), *graph_lines(planned.job, findings)], console)
    return planned, findings


@contextmanager
def shown_rows(num_rows: int, console: Console) -> Iterator[ReportProgress]:
    """Show a bar on a terminal while rows are checked; the function that counts those which have been."""
    columns = (TextColumn("checking rows"), BarColumn(30), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=num_rows)
        yield lambda rows: progress.advance(task, rows)


def refuse_hopeless(surveyed: Survey, findings: Findings, *, listed: bool = False) -> None:
    """Raise SpecError where more rows cannot be generated than the job's error budget allows.

    The message names some of the rows, unless they are `listed` already.
    """
    num_bad, allowed = sum(findings.num_bad.values()), surveyed.job.spec.errors.max_rate
    if not surveyed.num_rows:  # A job can be extended by files that have no rows.
        return
    if num_bad / surveyed.num_rows <= allowed:
        _refuse_unreadable(surveyed, findings, num_bad)
        return
    codes = ", ".join(f"{count:,} {code}" for code, count in findings.num_bad.items())
    examples = "; the plan lists them" if listed else _example_lines(findings)
    raise SpecError(
        f"{num_bad:,} of {counted(surveyed.num_rows, 'row')} cannot be generated ({codes}), "
        f"more than errors.max_rate ({allowed:g}) allows{examples}\n"
        "Correct the rows. Or, to record them as failed and generate the others, use "
        f"--set errors.max_rate={_sufficient_rate(num_bad, surveyed.num_rows)}"
    )


def _refuse_unreadable(surveyed: Survey, findings: Findings, num_bad: int) -> None:
    """Raise SpecError where so many of some images cannot be read that the job is bound to fail."""
    looked_at, allowed = findings.looked_at, surveyed.job.spec.errors.max_rate
    if (num_bad + looked_at.least_unreadable) / surveyed.num_rows <= allowed:
        return
    summary, *examples = picture_lines(looked_at)
    shown = "".join(f"\n{line}" for line in examples)
    raise SpecError(
        f"more rows will fail than errors.max_rate ({allowed:g}) allows: {summary}{shown}\n"
        "Put the images where the rows name them. Or, to generate the other rows, use --set errors.max_rate=1"
    )


def _example_lines(findings: Findings) -> str:
    """A few bad rows, each on a line of its own."""
    rows = "".join(f"\n  {describe_bad_row(row)}" for row in findings.bad_rows[:MAX_NAMED])
    more = "\n`darkroom plan` lists more of them" if len(findings.bad_rows) > MAX_NAMED else ""
    return f":{rows}{more}"


def _sufficient_rate(num_bad: int, num_rows: int) -> float:
    """The rate of bad rows, rounded up to three digits, so that errors.max_rate allows it."""
    return -(-num_bad * 1000 // num_rows) / 1000


def describe_bad_row(bad: BadRow) -> str:
    """A line about a bad row: `rows.parquet row 12 (owl): invalid_size: height is ...`"""
    row_id = f" ({bad.row_id})" if bad.row_id else ""
    return escaped(f"{PurePath(bad.uri).name} {bad.location}{row_id}: {bad.problem}")


def print_plan(plan: Plan, findings: Findings, console: Console) -> None:
    """Print the plan: models, routes, bad rows, parts and size."""
    console.print(_models_table(plan.job))
    shared_bytes = bytes_shared(plan.job.checkpoints)
    if shared_bytes:
        console.print(
            f"{size_text(shared_bytes)} of weights are the same in two checkpoints and are loaded only once"
        )
    _print_safety(plan.job, console)
    _print_lines([*_vae_lines(plan.job), *_adapter_lines(plan, findings)], console)
    console.print(_routes_table(findings))
    _print_bad_rows(plan, findings, console)
    _print_output(plan, findings, console)


def print_notes(surveyed: Survey, console: Console) -> None:
    """Print which columns and files of the input are read, as what, and which are not."""
    _print_lines(surveyed.notes, console)


def _print_lines(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(escaped(line), soft_wrap=True, highlight=False)


def _models_table(job: Job) -> Table:
    table = Table("model", "checkpoint", "recognised as", "size", "revision", title_justify="left")
    for name, card in job.models.items():
        size = size_text(card.weight_bytes) if card.weight_bytes else "on the Hub"
        kind = f"{card.family} ({card.pipeline}), {card.width}x{card.height}"
        table.add_row(name, card.checkpoint, kind, size, card.revision[:12])
        for part, component in card.components.items():
            path = "/".join(filter(None, [component.path, component.subfolder]))
            table.add_row(f"  with {part}", path, "", "", component.revision[:12])
    for column in table.columns:
        column.overflow = "fold"  # A checkpoint's name is not cut, however narrow the terminal is.
    return table


def _print_safety(job: Job, console: Console) -> None:
    """Print which models have a safety checker, and what happens to the images that it flags."""
    safety = job.spec.safety
    with_checker = [name for name, card in job.models.items() if card.has_safety_checker]
    without_checker = [name for name in job.models if name not in with_checker]
    if with_checker:
        treatment = {"drop": "dropped", "black": "stored as black images", "keep": "stored as they are"}
        meaning = (
            f"images that it flags are {treatment[safety.flagged]}, and their rows are filtered"
            if safety.checker == "on"
            else "switched off (safety.checker: off), so nothing is flagged"
        )
        console.print(f"safety checker in {', '.join(with_checker)}: {meaning}", soft_wrap=True)
    if without_checker:
        console.print(
            f"no safety checker in {', '.join(without_checker)}: nothing is flagged", soft_wrap=True
        )


def _vae_lines(job: Job) -> Iterator[str]:
    """For each model that may be in float16, in which precision its VAE is, if its pipeline has a choice."""
    for name, card in job.models.items():
        dtype = job.spec.models[name].dtype
        if dtype not in ("auto", "float16") or not card.pipeline.startswith(UPCASTING_PIPELINES):
            continue
        where = f"VAE of {name}{' on a GPU' if dtype == 'auto' else ''}"
        if not card.upcasts_vae:
            yield f"{where}: float16, which its configuration allows (force_upcast: false)"
        elif job.spec.kernels.vae_dtype == "bfloat16":
            yield f"{where}: it decodes in bfloat16 and encodes in float32 (kernels.vae_dtype)"
        else:
            share = VAE_SHARE if card.family.startswith("sdxl") else ""
            yield (
                f"{where}: float32, because float16 does not hold it (force_upcast in its configuration)"
                f"{share}; kernels.vae_dtype: bfloat16, or a VAE made for float16, takes less time"
            )


def _adapter_lines(plan: Plan, findings: Findings) -> Iterator[str]:
    """A line for each adapter, or for those that most rows apply: its size, and how many rows apply it."""
    sizes = {
        (kind, model, name): size_bytes
        for model, card in plan.job.models.items()
        for (kind, name), size_bytes in card.adapter_bytes.items()
    }
    by_rows = sorted(sizes, key=lambda key: -findings.adapter_rows.get(key, 0))
    # Python's sort is stable, so each kind's stay in the order of their rows.
    kinds = [*dict.fromkeys(kind for kind, _, _ in by_rows)]
    for key in sorted(by_rows[:MAX_ADAPTER_LINES], key=lambda key: kinds.index(key[0])):
        kind, model, name = key
        num_rows = findings.adapter_rows.get(key, 0)
        yield f"{kind} {name} of {model}: {size_text(sizes[key])}, {counted(num_rows, 'row')}"
    if others := by_rows[MAX_ADAPTER_LINES:]:
        size_bytes = sum(sizes[key] for key in others)
        num_unused = sum(key not in findings.adapter_rows for key in others)
        unused = f"; no row applies {num_unused:,} of them" if num_unused else ""
        yield f"and {counted(len(others), 'more adapter')}: {size_text(size_bytes)}{unused}"
    if findings.num_idle_pictures:
        have = f"{counted(findings.num_idle_pictures, 'row')} with an `{IMAGE_PROMPT}`"
        yield f"{have}, but without an ip_adapter to show it: the picture is not read"


def _routes_table(findings: Findings) -> Table:
    table = Table("route", "model", "size", title_justify="left")
    table.add_column("rows", justify="right")
    table.add_column("images", justify="right")
    commonest = sorted(findings.counts, key=lambda count: -count.rows)
    shown, others = set(commonest[:MAX_ROUTE_LINES]), commonest[MAX_ROUTE_LINES:]
    for count in (count for count in findings.counts if count in shown):
        table.add_row(count.route, count.model, _shown(count.size), f"{count.rows:,}", f"{count.images:,}")
        for step in count.then:
            table.add_row(f"  then {step.route}", step.model, _shown(step.size))
    if others:
        rows, images = sum(count.rows for count in others), sum(count.images for count in others)
        table.add_row("others", "", f"{len(others):,} more", f"{rows:,}", f"{images:,}")
    return table


def _shown(size: str) -> str:
    return size.replace("input", "the input's")


def _print_bad_rows(plan: Plan, findings: Findings, console: Console) -> None:
    for code, count in findings.num_bad.items():
        examples = [row for row in findings.bad_rows if row.problem.code == code]
        more = f"; the first {len(examples):,}:" if count > len(examples) else ""
        console.print(
            f"{count:,} of {counted(plan.num_rows, 'row')} cannot be generated: {code}{more}", style="bold"
        )
        for row in examples:
            console.print(f"  {describe_bad_row(row)}", soft_wrap=True)
    if sum(findings.num_bad.values()) > len(findings.bad_rows):
        console.print("--bad-rows N lists more of them", style="bold")


def _print_output(plan: Plan, findings: Findings, console: Console) -> None:
    spec = plan.job.spec
    total_bytes = expected_bytes(findings, plan.job)
    num_models = sum(bool(plan.num_shards_of(model)) for model in plan.job.models)
    num_unroutable = plan.num_shards_of(NO_MODEL)
    console.print(
        f"{counted(plan.num_rows, 'row')} in {counted(len(plan.files), 'file')} "
        f"{'becomes' if plan.num_rows == 1 else 'become'} {counted(plan.num_shards, 'part')} "
        f"of up to {counted(spec.batching.shard_rows, 'row')} ({counted(num_models, 'model')}"
        + (f", and {counted(num_unroutable, 'part')} of rows that no model takes" if num_unroutable else "")
        + f"); about {size_text(total_bytes)} of {spec.output.format} in {spec.output.path}",
        soft_wrap=True,
    )
    if spec.output.images == "parquet" and total_bytes / max(plan.num_shards, 1) > LARGE_PART_BYTES:
        console.print(
            f"parts will be about {size_text(total_bytes // plan.num_shards)} each; viewers work best with "
            f"parts below {size_text(LARGE_PART_BYTES)}: lower batching.shard_rows",
        )
    largest_bytes = largest_part(findings, plan.job).size_bytes
    if spec.output.path.startswith(S3_SCHEME) and largest_bytes > MAX_PUT_BYTES:
        console.print(
            f"the largest part may have {size_text(largest_bytes)}: more than {size_text(MAX_PUT_BYTES)} can "
            "be stored only where the store takes conditional uploads in pieces, which `run` tests first",
            soft_wrap=True,
        )
