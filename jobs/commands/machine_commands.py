"""The commands about the machine that darkroom runs on."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.command_line import Overrides, console
from schemas.spec.spec_file import load_spec


def doctor(
    spec: Annotated[
        Path | None,
        typer.Argument(help="A job's YAML file, whose models and output are checked too.", metavar="[SPEC]"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check this machine: versions, memory, disks, GPUs, Ray, the Hub and a spec's store. Says what to do.

    Exit code 0: nothing prevents a run. Exit code 1: a problem does. Nothing is left behind.

    Example: darkroom doctor configs/demo.yaml
    """
    from jobs.checkup.doctor import checks_for, examine

    checked = load_spec(spec, overrides or []) if spec else None
    examine(checks_for(checked), console())
