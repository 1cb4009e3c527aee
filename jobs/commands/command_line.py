"""What commands share: their options, the console that they print to, and the exit codes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from actors.storage.long_reading import tell_of_reading
from jobs.signals import Interrupted
from schemas.errors import DarkroomError
from schemas.wording.printable import escaped

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
