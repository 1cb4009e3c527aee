"""The commands that write the rows of a job's input."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.command_line import console


def expand(
    sweep: Annotated[Path, typer.Argument(help="A YAML file with lists of values.", metavar="SWEEP")],
    rows: Annotated[
        str, typer.Argument(help="The Parquet file to write, local or s3://.", metavar="ROWS.parquet")
    ],
    yes: Annotated[
        bool, typer.Option("--yes", help="Write the rows even if there are over a million.")
    ] = False,
) -> None:
    """Write a row for each combination of values: every prompt with every seed, and so on.

    A SWEEP of six rows has these two lines; docs/sweeps.md has the other keys.

    \b
    version: 1
    product: {prompt: [a red circle, a blue square], seed: [0, 1, 2]}

    Example: darkroom expand docs/sweep.yaml rows.parquet
    """
    from jobs.sweeps.rows_file import expand as expand_sweep

    expand_sweep(sweep, rows, console(), many=yes)
