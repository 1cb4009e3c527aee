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
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Tell the time with N workers; default: the spec's.", metavar="N"
        ),
    ] = None,
    gpu_hour: Annotated[
        float | None,
        typer.Option(
            "--gpu-hour", min=0, help="The price of an hour of a GPU; shows the cost.", metavar="PRICE"
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check every input row; show routes, shards, output size and time. Needs no GPU and loads no checkpoint.

    If the output exists, this ends as `run` would: refused where the job or its input has changed.

    Example: darkroom plan configs/demo.yaml --workers 8 --gpu-hour 1.80
    """
    from jobs.planning.row_scan import MAX_EXAMPLES
    from jobs.preparation import PlanOptions, show_plan

    checked = load_spec(spec, overrides or [])
    options = PlanOptions(
        extend=extend, max_examples=bad_rows or MAX_EXAMPLES, workers=workers, gpu_hour=gpu_hour
    )
    show_plan(checked, console(), options)


def try_rows(
    spec: SpecPath,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Rows to generate: some of each route, always the same.")
    ] = 16,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Generate this prompt instead; may be repeated.", metavar="TEXT"),
    ] = None,
    rows: Annotated[
        str, typer.Option("--rows", help="Generate the rows with these ids instead.", metavar="ID,ID")
    ] = "",
    show: Annotated[bool, typer.Option("--open", help="Open the contact sheet in a browser.")] = False,
    overrides: Overrides = None,
) -> None:
    """Generate a few rows of a job here and now, beside its output, which is not touched.

    Example: darkroom try configs/demo.yaml --limit 4
    """
    from jobs.trial.trial_run import Choice, open_sheet, run_trial

    ids = tuple(filter(None, (row_id.strip() for row_id in rows.split(","))))
    choice = Choice(limit=limit, prompts=tuple(prompts or ()), ids=ids)
    result = run_trial(load_spec(spec, overrides or []), choice, console(), spec=str(spec))
    if show:
        open_sheet(result.output, console())


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
    """Run a job on a Ray cluster, as `ray job submit` does. The cluster gets darkroom's code and the spec.

    Input and output must be where every machine can reach them.

    Example: darkroom submit configs/text2img-sd15.yaml --address http://head:8265 --wait
    """
    from jobs.fleet.cluster import refuse_relative_output
    from jobs.fleet.shipped_folder import refuse_input_left_behind
    from jobs.fleet.submit import submit_job

    checked = load_spec(spec, overrides or [])
    refuse_relative_output(checked)
    refuse_input_left_behind(checked.input)
    options = [argument for override in overrides or [] for argument in ("--set", override)]
    options += ["--extend"] if extend else []
    code = submit_job(spec, options, address, console(), wait=wait)
    if code:
        raise typer.Exit(code)
