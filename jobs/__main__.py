"""The command line: `darkroom` and `python -m jobs`.

Commands import what they need when they run, so that `--help`, `validate` and `plan` answer without
waiting for Ray.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.signals import Interrupted
from schemas.errors import DarkroomError, SpecError
from schemas.spec.spec_file import load_spec
from schemas.wording.printable import listed, printable

app = typer.Typer(
    name="darkroom",
    help="Dataset-scale image generation with Stable Diffusion on Ray: Parquet in, Parquet out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 our bug, 2 bad spec or input, 3 more failed rows than the budget allows, "
    "4 refused, 5 storage unreachable, 130 interrupted (run again to resume).",
)

MAX_MESSAGE = 10_000
"""Characters."""

SpecPath = Annotated[Path, typer.Argument(help="The job's YAML.", metavar="SPEC")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the spec: --set seed=7", metavar="KEY.KEY=VALUE"),
]
OutputPath = Annotated[str, typer.Argument(help="A job's output folder, local or s3://.", metavar="OUTPUT")]


@app.command()
def validate(spec: SpecPath, overrides: Overrides = None) -> None:
    """Check a spec alone: its keys, types and names. Reads no input and no checkpoint."""
    checked = load_spec(spec, overrides or [])
    console().print(
        f"{printable(str(spec))} is a valid spec: models {listed([*checked.models])}; "
        f"routes {listed([*checked.routes])}",
        soft_wrap=True,
    )


@app.command()
def plan(
    spec: SpecPath,
    bad_rows: Annotated[
        int | None,
        typer.Option("--bad-rows", min=1, help="Rows to name of each kind of mistake; else 20.", metavar="N"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check every row, and show routes, shards and the output's size. Needs no GPU and loads no model."""
    from actors.storage.uris import normalise
    from jobs.output.disk_space import refuse_full_disk
    from jobs.planning.plan import expected_bytes
    from jobs.planning.plan_text import check_rows, print_plan, refuse_hopeless
    from jobs.planning.row_scan import MAX_EXAMPLES
    from jobs.planning.survey import survey

    out = console()
    found = survey(load_spec(spec, overrides or []))
    made, findings = check_rows(found, out, bad_rows or MAX_EXAMPLES)
    print_plan(made, findings, out)
    refuse_hopeless(found, findings, listed=True)
    refuse_full_disk(normalise(made.job.spec.output.path), expected_bytes(findings, made.job))


@app.command()
def run(spec: SpecPath, overrides: Overrides = None) -> None:
    """Run a job, or what is missing of it: on the Ray that RAY_ADDRESS names, or on one started here."""
    from jobs.dispatch.budget import judge
    from jobs.reports.run_result import print_result
    from jobs.run import run_job

    checked = load_spec(spec, overrides or [])
    out = console()
    result = run_job(checked, out)
    print_result(result, out)
    judge(checked.errors, result.totals, result.abandoned)


@app.command()
def retry(
    spec: SpecPath,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Rows with this error_code; may be given several times.", metavar="CODE"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Make the failed rows of a job again; every other row stays as it is."""
    from jobs.dispatch.budget import judge
    from jobs.reports.run_result import print_result
    from jobs.retry import retry_job

    checked = load_spec(spec, overrides or [])
    out = console()
    result = retry_job(checked, out, only or [])
    print_result(result, out)
    judge(checked.errors, result.totals, result.abandoned)


@app.command()
def submit(
    spec: SpecPath,
    address: Annotated[
        str, typer.Option(envvar="RAY_DASHBOARD_ADDRESS", help="Of the cluster's job server.")
    ] = "http://127.0.0.1:8265",
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the log; end with the job's exit code.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Run a job on a Ray cluster, through `ray job submit`. Give input and output as URIs."""
    from jobs.dispatch.submit import submit_job

    load_spec(spec, overrides or [])
    code = submit_job(spec, overrides or [], address, console(), wait=wait)
    if code:
        raise typer.Exit(code)


@app.command()
def status(output: OutputPath) -> None:
    """How far a job is, from its output alone."""
    from jobs.reports.status import print_status

    print_status(output, console())


@app.command()
def report(output: OutputPath) -> None:
    """Write the contact sheet: one HTML page to look at, also of a job that is not done."""
    from actors.storage.output import open_output
    from jobs.reports.contact_sheet import write_report

    console().print(write_report(open_output(output)), highlight=False, soft_wrap=True)


@app.command()
def verify(output: OutputPath) -> None:
    """Read an output again and prove that every input row has one outcome and every picture is whole."""
    from jobs.verification.verify import verify_output

    verify_output(output, console())


@app.command()
def schema(
    path: Annotated[Path | None, typer.Argument(help="Where to write it; else it is printed.")] = None,
) -> None:
    """Write the JSON schema of a spec, with which editors complete and check the YAML."""
    from schemas.spec.spec_schema import spec_schema

    text = spec_schema()
    if path is None:
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror or error}") from error


@app.command(name="demo-model")
def demo_model(
    folder: Annotated[Path, typer.Argument(help="Where to write the checkpoint.")],
    kind: Annotated[str, typer.Option(help="Which system; docs/job-spec.md lists them.")] = "sd",
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> None:
    """Write a small checkpoint for trying darkroom out: one that draws shapes, or one with random weights."""
    from models.demo_cache import RANDOM_KINDS, build

    build(folder, kind, seed)
    said = f"{folder}: a {kind} checkpoint"
    if kind in RANDOM_KINDS:
        said += " with random weights; its pictures are noise by design"
    console().print(said, soft_wrap=True)


def console() -> Console:
    """Where commands print: as wide as the terminal, or wide enough for a log."""
    width = None if Console().is_terminal else 140
    # No markup: names and paths with brackets in them are printed as they are.
    return Console(width=width, markup=False, highlight=False)


def _bounded(message: str) -> str:
    """Without the rest of what no one reads: a stranger's text of megabytes, say."""
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]} ... (cut)"


@contextmanager
def exit_codes() -> Iterator[None]:
    """The one place where errors become messages and exit codes."""
    try:
        yield
    except DarkroomError as error:
        sys.stderr.write(f"darkroom: {printable(_bounded(str(error)))}\n")
        sys.exit(error.exit_code)
    except (Interrupted, KeyboardInterrupt):
        sys.stderr.write("darkroom: interrupted; what is committed stays, run again to resume\n")
        sys.exit(130)


def main() -> None:
    """The program."""
    # Ray reads these when it is imported: without them its messages are coloured, in logs too.
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    with exit_codes():
        app(prog_name="darkroom")


if __name__ == "__main__":
    main()
