"""The plan's lines on how it reads the rows: folders, samplers, signs of other tools, and images by URI."""

from collections.abc import Iterator
from pathlib import PurePath

from jobs.planning.picture_sample import LookedAt
from jobs.planning.plan import Plan
from jobs.planning.prompt_signs import SIGNS, PromptSigns
from jobs.planning.row_scan import Findings
from schemas.job import Job
from schemas.systems.sampler_names import reading
from schemas.wording.amounts import counted
from schemas.wording.printable import MAX_LISTED

MAX_PICTURES = 5
"""The images that cannot be read and that are named."""


def reading_lines(plan: Plan, findings: Findings) -> list[str]:
    """What contradicts the names of folders, how each sampler's name is read, which signs of other tools the
    prompts have, what came of a look at some images, and why ids were not compared."""
    return [
        *findings.contradictions,
        *_sampler_lines(plan.job, findings),
        *_sign_lines(findings.prompt_signs, plan.num_rows),
        *picture_lines(findings.looked_at),
        *_id_lines(findings),
    ]


def _id_lines(findings: Findings) -> list[str]:
    if not findings.ids_problem:
        return []
    return [f"row ids were not compared: {findings.ids_problem}. If rows share an id, all are generated"]


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


def picture_lines(looked_at: LookedAt) -> list[str]:
    """What came of the look at some images, a line each."""
    if not looked_at.num_looked:
        return []
    num_bad, looked = len(looked_at.unreadable), f"looked at {looked_at.num_looked:,} of"
    result = f"{num_bad:,} cannot be read, such as:" if num_bad else "all can be read"
    return [
        f"{looked} {counted(looked_at.num_pictures, 'image')} that rows name by URI: {result}",
        *(
            f"  {PurePath(picture.file).name} {picture.location}: {error}"
            for picture, error in looked_at.unreadable[:MAX_PICTURES]
        ),
    ]
