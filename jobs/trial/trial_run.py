"""`darkroom try`: a few rows of a job, generated here and now into an output beside that of the job."""

import webbrowser
from dataclasses import dataclass
from itertools import count

from rich.console import Console

from actors.parts.commit import probe
from actors.storage.output import Output, open_output
from actors.storage.uris import normalise
from actors.worker_process import ENGINE, load_ahead
from jobs.intake.parquet_copies import store_copies
from jobs.output.figures import codes_text
from jobs.output.job_record import claim, read_record
from jobs.output.resumption import survey_of
from jobs.planning.plan_text import check_rows, print_notes, refuse_hopeless, shown_rows
from jobs.planning.row_scan import Findings
from jobs.reports.finish import finish
from jobs.reports.run_result import RunResult
from jobs.signals import stopping_signals
from jobs.survey.survey import Survey, make_survey
from jobs.trial.one_worker import generate_here
from jobs.trial.row_sample import named_rows, sample_rows
from jobs.trial.trial_input import names_of_files, store_prompts, survey_of_rows
from jobs.trial.trial_text import opening_line, print_trial
from schemas.errors import BudgetError, SpecError
from schemas.output_layout import CONTACT_SHEET, JOB_RECORD, trial_folder
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted
from schemas.wording.printable import escaped

MAX_ROWS = 16
"""The rows of a trial, if nothing else is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which rows a trial generates."""

    limit: int = MAX_ROWS
    """How many of the input's rows, if it is not said which."""
    prompts: tuple[str, ...] = ()
    """Prompts that are generated instead."""
    ids: tuple[str, ...] = ()
    """The ids of the rows that are generated instead."""

    def options(self) -> list[str]:
        """The options of the command line that make this choice."""
        if self.prompts:
            return [word for prompt in self.prompts for word in ("--prompt", prompt)]
        if self.ids:
            return ["--rows", ",".join(self.ids)]
        return [] if self.limit == MAX_ROWS else ["--limit", str(self.limit)]


def run_trial(
    job: JobSpec, choice: Choice, console: Console, *, spec: str = "SPEC", engine: str = ENGINE
) -> RunResult:
    """Generate the chosen rows in this process, and print what came of them.

    `spec`: the path of the job's YAML file, for the commands that come next. The output is a new one for each
    trial. SpecError as for a run. BudgetError where no row could be generated.
    """
    if choice.prompts and choice.ids:
        raise SpecError("--prompt and --rows exclude each other: a prompt on the command line is of no row")
    load_ahead(engine)
    with stopping_signals():
        output = _next_output(job)
        surveyed = _survey(job, choice, output, console)
        plan, findings = check_rows(surveyed, console)
        if choice.prompts:
            _refuse_prompts(findings)
        else:
            refuse_hopeless(surveyed, findings)
        probe(output)
        store_copies((file.copy for file in surveyed.files if file.copy), output)
        record = claim(output, plan, findings)
        console.print(escaped(opening_line(plan)), soft_wrap=True)
        tally = generate_here(plan, output, console, engine)
        totals = finish(output, record, tally.figures())
    result = RunResult(output=output.path, totals=totals, run=tally.figures(), failures=tally.failures)
    print_trial(result, console, spec, choice.options())
    if totals.failed == totals.rows:
        raise BudgetError("every row of the trial failed")
    return result


def _refuse_prompts(findings: Findings) -> None:
    """Raise SpecError where a prompt is not enough for a row of the default route."""
    for bad in findings.bad_rows:
        raise SpecError(
            f"--prompt: {bad.problem.message}; or choose a route that needs only a prompt with "
            "--set default_route=NAME, or rows of the input with --rows"
        )


def open_sheet(output: str, console: Console) -> None:
    """Open the contact sheet of an output in a browser; print what to do where there is none."""
    if "://" in output or not webbrowser.open(f"file://{output}/{CONTACT_SHEET}"):
        console.print(
            f"no browser could be opened here; open {output}/{CONTACT_SHEET} in one", soft_wrap=True
        )


def _next_output(job: JobSpec) -> Output:
    """The output of the next trial: the first that no trial has begun."""
    path = normalise(job.output.path)
    for number in count(1):
        output = open_output(trial_folder(path, number), deadline_s=job.errors.storage_deadline_s)
        if not output.has(JOB_RECORD):
            return output
    raise AssertionError("the numbers have no end")


def _survey(job: JobSpec, choice: Choice, output: Output, console: Console) -> Survey:
    """The survey of the chosen rows alone, as a job with an output of its own."""
    spec = job.model_copy(update={"output": job.output.model_copy(update={"path": output.path})})
    if choice.prompts:
        of_prompts = spec.model_copy(update={"input": store_prompts(output, choice.prompts)})
        return make_survey(of_prompts)
    record = read_record(open_output(job.output.path, deadline_s=job.errors.storage_deadline_s))
    surveyed = survey_of(job, record)
    print_notes(surveyed, console)
    names = names_of_files(surveyed, record)
    if choice.ids:
        return survey_of_rows(surveyed, named_rows(surveyed, names, choice.ids), spec)
    with shown_rows(surveyed.num_rows, console) as report:
        sample = sample_rows(surveyed, names, choice.limit, report)
    if num_bad := sum(sample.num_bad.values()):
        console.print(
            f"{counted(num_bad, 'row')} of the input cannot be generated "
            f"({codes_text(sample.num_bad.items())}); `darkroom plan` lists them",
            soft_wrap=True,
        )
    return survey_of_rows(surveyed, sample.rows, spec)
