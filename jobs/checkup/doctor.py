"""`darkroom doctor`: every check, in a time that is bounded, and what to do about what is wrong."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

from rich.console import Console

from jobs.checkup.cluster_check import check_ray
from jobs.checkup.devices import check_devices
from jobs.checkup.facts import PATIENCE_S
from jobs.checkup.finding import Finding, Level, problem
from jobs.checkup.hub_check import check_hub, check_models
from jobs.checkup.resources import check_disks, check_memory
from jobs.checkup.store_check import check_store
from jobs.checkup.versions import check_versions
from schemas.errors import DarkroomError
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted
from schemas.wording.printable import escaped

WITHIN_S = 10.0
"""How long a check may take, if it needs no process of its own."""
MARGIN_S = 5.0
"""How much longer than its process a check may take."""


class Check(NamedTuple):
    """One check."""

    subject: str
    run: Callable[[], Iterable[Finding]]
    within_s: float = WITHIN_S


def checks_for(spec: JobSpec | None) -> list[Check]:
    """The checks of this machine and, if there is one, of what a spec needs."""
    output = spec.output.path if spec else None
    checks = [
        Check("versions", check_versions),
        Check("memory", check_memory),
        Check("disks", lambda: check_disks(output)),
        Check("devices", check_devices, PATIENCE_S + MARGIN_S),
        Check("Ray", check_ray, PATIENCE_S + MARGIN_S),
        Check("Hub", check_hub),
    ]
    if spec:
        checks += [
            Check("models", lambda: check_models(spec)),
            Check("output", lambda: check_store(spec.output.path)),
        ]
    return checks


def examine(checks: Sequence[Check], console: Console) -> None:
    """Print what the checks find, a line each; DarkroomError if something would prevent a run."""
    num_problems = 0
    for check in checks:
        shown = console.status(f"checking {check.subject} ...") if console.is_terminal else nullcontext()
        with shown:
            findings = [*_bounded(check)]
        for finding in findings:
            num_problems += finding.level is Level.PROBLEM
            console.print(escaped(f"{finding.level:<8}{check.subject:<9} {finding.text}"), soft_wrap=True)
    if num_problems:
        raise DarkroomError(f"{counted(num_problems, 'problem')} would prevent a run; see above what to do")


def _bounded(check: Check) -> Iterator[Finding]:
    """What a check finds in its time."""
    answers: queue.SimpleQueue[list[Finding] | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put([*check.run()])
        except Exception as error:  # noqa: BLE001 - handed to the other thread
            answers.put(error)

    # A thread that hangs does not keep the command from its end.
    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=check.within_s)
    except queue.Empty:
        yield problem(f"no answer within {check.within_s:g} s; a run would wait for it too")
        return
    if isinstance(answer, DarkroomError):
        yield problem(str(answer))
    elif isinstance(answer, Exception):
        raise answer
    else:
        yield from answer
