"""The plan's lines on values of other tools: samplers read as schedulers, and signs that are text."""

from collections.abc import Iterator

from rich.console import Console

from jobs.planning.plan import Plan
from jobs.planning.prompt_signs import SIGNS, PromptSigns
from jobs.planning.row_scan import Findings
from schemas.job import Job
from schemas.systems.sampler_names import reading
from schemas.wording.amounts import counted
from schemas.wording.printable import MAX_LISTED, escaped


def print_readings(plan: Plan, findings: Findings, console: Console) -> None:
    """Print how each sampler's name is read, and which signs of other tools the prompts have."""
    for line in (*_sampler_lines(plan.job, findings), *_sign_lines(findings.prompt_signs, plan.num_rows)):
        console.print(escaped(line), soft_wrap=True)


def _sampler_lines(job: Job, findings: Findings) -> Iterator[str]:
    of_routes = (route.scheduler for route in job.spec.routes.values() if route.scheduler)
    readings = [
        read_as for name in dict.fromkeys((*of_routes, *findings.samplers)) if (read_as := reading(name))
    ]
    for read_as in readings[:MAX_LISTED]:
        yield f"scheduler {read_as}"
    if len(readings) > MAX_LISTED:
        yield f"{counted(len(readings) - MAX_LISTED, 'more name')} of schedulers are read so"


def _sign_lines(signs: PromptSigns, num_rows: int) -> Iterator[str]:
    whole = signs.num_rows == num_rows
    looked_at = counted(signs.num_rows, "row") if whole else f"the {signs.num_rows:,} rows looked at"
    for sign, count in signs.counts:
        verb = "has" if count == 1 else "have"
        yield f"{count:,} of {looked_at} {verb} `{sign}` in a prompt: it is read as text, {SIGNS[sign][1]}"
