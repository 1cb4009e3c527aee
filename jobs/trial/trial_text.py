"""The texts of `darkroom try`."""

from collections.abc import Sequence

from rich.console import Console

from jobs.output.figures import RunFigures, outcomes_text, rate_text
from jobs.planning.plan import Plan
from jobs.reports.run_result import MAX_CODES, RunResult, failure_lines
from schemas.output_layout import CONTACT_SHEET
from schemas.wording.amounts import counted, size_text
from schemas.wording.next_commands import command, next_lines
from schemas.wording.printable import escaped, listed


def opening_line(plan: Plan) -> str:
    """What a trial generates, with what and where to."""
    models = listed([*plan.job.models])
    return f"trying {counted(plan.num_rows, 'row')} here, with {models}; output: {plan.job.spec.output.path}"


def print_trial(result: RunResult, console: Console, spec: str, options: Sequence[str]) -> None:
    """Print what came of a trial and what it took, its contact sheet, and the commands that come next.

    `options`: those of the command line that chose the rows.
    """
    commands = [
        (command("try", spec, *options), "generates the same rows again, after a change of the spec"),
        (command("plan", spec), "checks all rows, and tells how long they will take"),
        (command("run", spec), "generates all rows"),
    ]
    lines = [
        outcomes_text(result.totals),
        *failure_lines(result.failures, MAX_CODES),
        *_cost_lines(result.run),
        f"contact sheet: {result.output}/{CONTACT_SHEET}",
        *(escaped(line) for line in next_lines(commands)),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _cost_lines(figures: RunFigures) -> list[str]:
    """What an image took: seconds and memory; no line where there is no image."""
    seconds = figures.seconds_by_stage.get("generate", 0.0)
    if not figures.images or not seconds:
        return []
    device_bytes = figures.peak_device_bytes
    on_device = f", and {size_text(device_bytes)} of the device" if device_bytes else ""
    return [
        f"time: {rate_text(figures.images / seconds)} on this machine, loading of weights included",
        f"memory: at most {size_text(figures.worker_peak_rss_bytes)}{on_device}",
    ]
