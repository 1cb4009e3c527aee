"""The command line: `darkroom` and `python -m jobs`.

Each command imports what it needs when it runs, so that `--help`, `validate` and `plan` answer without
waiting for Ray.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from actors.storage.long_reading import tell_of_reading
from jobs.signals import Interrupted
from models.demo_adapters import KINDS as ADAPTERS
from schemas import __version__
from schemas.errors import DarkroomError, SpecError
from schemas.spec.spec_file import load_spec
from schemas.wording.printable import escaped, listed

app = typer.Typer(
    name="darkroom",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 broken workers or output, or a bug, 2 bad spec or input, "
    "3 too many failed rows or missing parts, 4 refused, 5 storage failed, 130 interrupted "
    "(run again to resume).",
)

MAX_MESSAGE = 10_000
"""Characters of an error message that are printed."""

SpecPath = Annotated[Path, typer.Argument(help="The job's YAML file.", metavar="SPEC")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a key of the spec, for example --set seed=7.", metavar="KEY.KEY=VALUE"
    ),
]
Extend = Annotated[
    bool,
    typer.Option("--extend", help="Files that are new in the input since the job began become part of it."),
]
OutputPath = Annotated[str, typer.Argument(help="A job's output folder, local or s3://.", metavar="OUTPUT")]


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions of darkroom and of what it uses.")
    ] = False,
) -> None:
    """Dataset-scale image generation with Stable Diffusion on Ray: Parquet in, Parquet out."""
    if version:
        from actors.parts.part import LIBRARIES

        libraries = ", ".join(f"{name} {installed(name)}" for name in LIBRARIES)
        console().print(f"darkroom {__version__} ({libraries})", soft_wrap=True)
        raise typer.Exit


@app.command()
def validate(spec: SpecPath, overrides: Overrides = None) -> None:
    """Check the spec: its keys, types and names. Reads no input and no checkpoint."""
    checked = load_spec(spec, overrides or [])
    console().print(
        f"{escaped(str(spec))} is a valid spec: models {listed([*checked.models])}; "
        f"routes {listed([*checked.routes])}",
        soft_wrap=True,
    )


@app.command()
def plan(
    spec: SpecPath,
    bad_rows: Annotated[
        int | None,
        typer.Option("--bad-rows", min=1, help="Bad rows to list of each kind; default 20.", metavar="N"),
    ] = None,
    extend: Extend = False,
    overrides: Overrides = None,
) -> None:
    """Check every input row; show routes, shards and output size. Needs no GPU and loads no checkpoint.

    If the output exists, this ends as `run` would: refused where the job or its input has changed.
    """
    from jobs.planning.row_scan import MAX_EXAMPLES
    from jobs.preparation import show_plan

    checked = load_spec(spec, overrides or [])
    show_plan(checked, console(), extend=extend, max_examples=bad_rows or MAX_EXAMPLES)


@app.command()
def run(spec: SpecPath, extend: Extend = False, overrides: Overrides = None) -> None:
    """Run a job, or resume it, on the Ray cluster at RAY_ADDRESS or on this machine."""
    from jobs.fleet.budget import judge
    from jobs.reports.run_result import print_result
    from jobs.run import run_job

    checked = load_spec(spec, overrides or [])
    out = console()
    result = run_job(checked, out, extend=extend)
    print_result(result, out, str(spec))
    judge(checked.errors, result)


@app.command()
def retry(
    spec: SpecPath,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Retry only rows with this error_code; may be repeated.", metavar="CODE"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Generate the failed rows of a job again. All other rows keep their results."""
    from jobs.fleet.budget import judge
    from jobs.reports.run_result import print_result
    from jobs.retry import retry_job

    checked = load_spec(spec, overrides or [])
    out = console()
    result = retry_job(checked, out, only or [])
    print_result(result, out, str(spec))
    judge(checked.errors, result)


@app.command()
def submit(
    spec: SpecPath,
    address: Annotated[
        str, typer.Option(envvar="RAY_DASHBOARD_ADDRESS", help="Address of the cluster's job server.")
    ] = "http://127.0.0.1:8265",
    wait: Annotated[
        bool, typer.Option("--wait", help="Print the job's log until it ends, and exit with its exit code.")
    ] = False,
    extend: Extend = False,
    overrides: Overrides = None,
) -> None:
    """Run a job on a Ray cluster, through `ray job submit`. Input and output should be URIs."""
    from jobs.fleet.cluster import refuse_relative_output
    from jobs.fleet.submit import submit_job

    refuse_relative_output(load_spec(spec, overrides or []))
    options = [argument for override in overrides or [] for argument in ("--set", override)]
    options += ["--extend"] if extend else []
    code = submit_job(spec, options, address, console(), wait=wait)
    if code:
        raise typer.Exit(code)


@app.command()
def status(
    output: OutputPath,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every few seconds, until the job is finished.")
    ] = False,
) -> None:
    """Show the progress of a job, read from its output."""
    from jobs.reports.status import print_status, watch_status

    if watch:
        watch_status(output, console())
    else:
        print_status(output, console())


@app.command()
def report(output: OutputPath) -> None:
    """Write the contact sheet, an HTML page with a sample of the images. The job may be unfinished."""
    from actors.storage.output import open_output
    from jobs.reports.contact_sheet import write_report

    console().print(write_report(open_output(output)), highlight=False, soft_wrap=True)


@app.command()
def verify(output: OutputPath) -> None:
    """Read the whole output; check that every input row has one outcome and every image is intact."""
    from jobs.verification.verify import verify_output

    verify_output(output, console())


@app.command()
def replay(
    output: OutputPath,
    row_id: Annotated[str, typer.Argument(help="The id of the row, as the column `row_id` has it.")],
    alone: Annotated[
        bool,
        typer.Option("--alone", help="Generate the row without those of its shard: fast, less exact."),
    ] = False,
) -> None:
    """Generate one row again, here and now, and compare it with the output, which is only read."""
    from jobs.replay import replay_row

    replay_row(output, row_id, console(), alone=alone)


@app.command()
def schema(
    path: Annotated[
        Path | None, typer.Argument(help="File to write; by default the schema is printed.")
    ] = None,
) -> None:
    """Write the JSON schema of specs, which editors use to complete and check the YAML."""
    from schemas.spec.spec_schema import spec_json_schema

    text = spec_json_schema()
    if path is None:
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror or error}") from error


@app.command(name="demo-model")
def demo_model(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")],
    kind: Annotated[
        str,
        typer.Option(
            help=f"Kind of checkpoint; docs/job-spec.md lists all. Or of adapter: {', '.join(ADAPTERS)}."
        ),
    ] = "sd",
    checkpoint: Annotated[
        str, typer.Option(help="What a random adapter is for: a checkpoint's folder, or demo:KIND.")
    ] = "demo:sd",
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
) -> None:
    """Write a small checkpoint or adapter to try darkroom with: a trained one, or one with random weights."""
    from models import demo_adapters, demo_cache

    if kind in demo_adapters.KINDS:
        demo_adapters.build(folder, kind, checkpoint, seed)
        of_random = f" for {checkpoint} with random weights" if kind in demo_adapters.RANDOM_KINDS else ""
        console().print(f"{folder}: the adapter {kind}{of_random}", soft_wrap=True)
        return
    demo_cache.build(folder, kind, seed)
    weights = (
        " with random weights; its images are noise by design" if kind in demo_cache.RANDOM_KINDS else ""
    )
    console().print(f"{folder}: a {kind} checkpoint{weights}", soft_wrap=True)


def console() -> Console:
    """The console that commands print to: as wide as the terminal, or 140 columns for a log."""
    width = None if Console().is_terminal else 140
    # Without markup, names and paths with brackets are printed unchanged.
    out = Console(width=width, markup=False, highlight=False)
    tell_of_reading(lambda line: out.print(escaped(line), soft_wrap=True))
    return out


def _bounded(message: str) -> str:
    """The message, cut after MAX_MESSAGE characters: it may quote megabytes of somebody else's text."""
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]} ... (cut)"


@contextmanager
def exit_codes() -> Iterator[None]:
    """The only place where errors become messages and exit codes."""
    try:
        yield
    except DarkroomError as error:
        sys.stderr.write(f"darkroom: {escaped(_bounded(str(error)))}\n")
        sys.exit(error.exit_code)
    except (Interrupted, KeyboardInterrupt):
        sys.stderr.write("darkroom: interrupted; saved parts stay, run again to resume\n")
        sys.exit(130)


def main() -> None:
    """Run the command line; the entry point of `darkroom`."""
    # Ray reads these when it is imported; without them it colours its messages, also in logs.
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Since 2.60 a driver that `uv run` has started makes Ray ship its folder and start workers through uv.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A log in ASCII shows a question mark for a sign that it lacks; to fail would end the job.
            stream.reconfigure(errors="replace")
    with exit_codes():
        app(prog_name="darkroom")


if __name__ == "__main__":
    main()
