"""The commands that take a job's spec: check it, plan it, run it."""

from typing import Annotated

import typer

from jobs.commands.command_line import Extend, Overrides, SpecPath, console
from schemas.spec.spec_file import load_spec
from schemas.wording.printable import escaped, listed


def validate(spec: SpecPath, overrides: Overrides = None) -> None:
    """Check the spec: its keys, types and names. Reads no input and no checkpoint.

    Example: darkroom validate configs/demo.yaml
    """
    checked = load_spec(spec, overrides or [])
    console().print(
        f"{escaped(str(spec))} is a valid spec: models {listed([*checked.models])}; "
        f"routes {listed([*checked.routes])}",
        soft_wrap=True,
    )


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

    Example: darkroom plan configs/demo.yaml
    """
    from jobs.planning.row_scan import MAX_EXAMPLES
    from jobs.preparation import show_plan

    checked = load_spec(spec, overrides or [])
    show_plan(checked, console(), extend=extend, max_examples=bad_rows or MAX_EXAMPLES)


def run(spec: SpecPath, extend: Extend = False, overrides: Overrides = None) -> None:
    """Run a job, or resume it, on the Ray cluster at RAY_ADDRESS or on this machine.

    Example: darkroom run configs/demo.yaml
    """
    from jobs.fleet.budget import judge
    from jobs.reports.run_result import print_result
    from jobs.run import run_job

    checked = load_spec(spec, overrides or [])
    out = console()
    result = run_job(checked, out, extend=extend)
    print_result(result, out, str(spec))
    judge(checked.errors, result)


def retry(
    spec: SpecPath,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Retry only rows with this error_code; may be repeated.", metavar="CODE"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Generate the failed rows of a job again. All other rows keep their results.

    Example: darkroom retry configs/demo.yaml --only out_of_memory
    """
    from jobs.fleet.budget import judge
    from jobs.reports.run_result import print_result
    from jobs.retry import retry_job

    checked = load_spec(spec, overrides or [])
    out = console()
    result = retry_job(checked, out, only or [])
    print_result(result, out, str(spec))
    judge(checked.errors, result)


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
    """Run a job on a Ray cluster, through `ray job submit`. Input and output should be URIs.

    Example: darkroom submit configs/text2img-sd15.yaml --address http://head:8265 --wait
    """
    from jobs.fleet.cluster import refuse_relative_output
    from jobs.fleet.submit import submit_job

    refuse_relative_output(load_spec(spec, overrides or []))
    options = [argument for override in overrides or [] for argument in ("--set", override)]
    options += ["--extend"] if extend else []
    code = submit_job(spec, options, address, console(), wait=wait)
    if code:
        raise typer.Exit(code)
