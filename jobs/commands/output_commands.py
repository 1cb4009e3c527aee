"""The commands that take a job's output: look at it, check it, generate a row of it again."""

from typing import Annotated

import typer

from jobs.commands.command_line import OutputPath, console


def status(
    output: OutputPath,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every few seconds, until the job is finished.")
    ] = False,
) -> None:
    """Show the progress of a job, read from its output.

    Example: darkroom status out/demo --watch
    """
    from jobs.reports.status import print_status, watch_status

    if watch:
        watch_status(output, console())
    else:
        print_status(output, console())


def report(output: OutputPath) -> None:
    """Write the contact sheet, an HTML page with a sample of the images. The job may be unfinished.

    Example: darkroom report out/demo
    """
    from actors.storage.output import open_output
    from jobs.reports.sheet.contact_sheet import write_report

    console().print(write_report(open_output(output)), highlight=False, soft_wrap=True)


def verify(output: OutputPath) -> None:
    """Read the whole output; check that every input row has one outcome and every image is intact.

    Example: darkroom verify out/demo
    """
    from jobs.verification.verify import verify_output

    verify_output(output, console())


def replay(
    output: OutputPath,
    row_id: Annotated[str, typer.Argument(help="The id of the row, as the column `row_id` has it.")],
    alone: Annotated[
        bool,
        typer.Option("--alone", help="Generate the row without those of its shard: fast, less exact."),
    ] = False,
) -> None:
    """Generate one row again, here and now, and compare it with the output, which is only read.

    Example: darkroom replay out/demo ROW_ID
    """
    from jobs.trial.replay import replay_row

    replay_row(output, row_id, console(), alone=alone)
