"""The command line: `darkroom` and `python -m jobs`.

Each command imports what it needs when it runs, so that `--help`, `validate` and `plan` answer without
waiting for Ray.
"""

import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version as installed
from io import TextIOWrapper
from typing import Annotated

import typer

from jobs.commands.command_line import console, exit_codes
from jobs.commands.file_commands import demo_model, init, schema
from jobs.commands.job_commands import plan, retry, run, submit, try_rows, validate
from jobs.commands.machine_commands import doctor
from jobs.commands.output_commands import replay, report, status, verify
from jobs.commands.row_commands import expand
from schemas import __version__

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


COMMANDS: Mapping[str, Callable[..., None]] = {
    "init": init,
    "expand": expand,
    "validate": validate,
    "plan": plan,
    "try": try_rows,
    "run": run,
    "retry": retry,
    "submit": submit,
    "status": status,
    "report": report,
    "verify": verify,
    "replay": replay,
    "doctor": doctor,
    "schema": schema,
    "demo-model": demo_model,
}
"""In the order of a job's life, which is that of `--help`."""

for name, command in COMMANDS.items():
    app.command(name=name)(command)


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
