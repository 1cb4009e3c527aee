"""What comes before a run: which rows an output has no record of, and their plan.

`darkroom plan` shows it, and `darkroom run` acts by it.
"""

from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa
from rich.console import Console

from actors.inputs.footers import FooterReader
from actors.parts.commit import probe
from actors.storage.output import Output, open_output
from jobs.estimates.time_lines import time_lines
from jobs.output.capacity import bytes_to_come, refuse_full_disk, refuse_large_parts
from jobs.output.content_hashes import with_hashes
from jobs.output.job_record import JobRecord, read_record
from jobs.output.parts import list_parts
from jobs.output.resumption import find_recorded, plan_of, survey_of
from jobs.planning.plan import Plan, expected_bytes, largest_part
from jobs.planning.plan_text import check_rows, print_notes, print_plan, refuse_hopeless
from jobs.planning.row_scan import MAX_EXAMPLES, Findings
from jobs.survey.survey import Survey, SurveyedFile
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import RefusedError, StorageError
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted
from schemas.wording.printable import escaped

PLAN_DEADLINE_S = 20.0
"""How long a plan repeats requests for an output that it cannot reach. It can be made without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _NewRows:
    """Rows that an output has no record of."""

    survey: Survey
    """The survey of their files alone."""
    earlier: tuple[SurveyedFile, ...] = ()
    """The files that the record has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPlan:
    """A plan of rows that an output has no record of. They can be generated, as far as is known."""

    plan: Plan
    findings: Findings
    largest_bytes: int
    """An estimate of the size of the largest part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What a plan is asked to show."""

    extend: bool = False
    """Whether it is that of files that are new in the input."""
    max_examples: int = MAX_EXAMPLES
    """Bad rows that are listed of each kind."""
    workers: int | None = None
    """The workers for which the time is told; None: those of the spec."""
    gpu_hour: float | None = None
    """The price of an hour of a GPU; None: no price is told."""


def show_plan(spec: JobSpec, console: Console, options: PlanOptions = PlanOptions()) -> None:
    """Print the plan of a run, and the time and money that it will take.

    Then raise what would end such a run before it generates.
    """
    output = open_output(spec.output.path, deadline_s=PLAN_DEADLINE_S)
    record = None
    try:
        record = read_record(output)
    except StorageError as error:  # Who plans may have no right to read what the job will write.
        console.print(f"not known whether this job has begun: {error}", soft_wrap=True)
    surveyed = survey_of(spec, record)
    print_notes(surveyed, console)
    new = None
    if record is None:
        new = _NewRows(survey=surveyed)
    elif options.extend:
        new = _added_rows(surveyed, record, output)
    shown = new or _NewRows(survey=surveyed)
    plan, findings = check_rows(shown.survey, console, options.max_examples, shown.earlier)
    print_plan(plan, findings, console)
    if new:
        _print_time(plan, findings, output, console, options)
        refuse_hopeless(new.survey, findings, listed=True)
        refuse_full_disk(output.path, expected_bytes(findings, plan.job))
    elif record:
        plan_of(record, surveyed, output.path)
        parts = list_parts(output, record.shard_names)
        console.print(
            f"{output.path} is of this job, and has {len(parts):,} of {counted(record.num_shards, 'part')}",
            soft_wrap=True,
        )
        if not parts.are_all:
            left = 1 - len(parts) / max(1, record.num_shards)
            _print_time(plan, findings, output, console, options, share=left)
        refuse_full_disk(output.path, bytes_to_come(parts))


def _print_time(
    plan: Plan, findings: Findings, output: Output, console: Console, options: PlanOptions, share: float = 1.0
) -> None:
    """Print how long the rows will take, or this `share` of them that is left."""
    lines = time_lines(
        plan, findings, output, workers=options.workers, gpu_hour=options.gpu_hour, share=share
    )
    # Who plans may have no right to read what the job will write.
    with suppress(StorageError):
        for line in lines:
            console.print(escaped(line), soft_wrap=True)


def plan_new_rows(
    surveyed: Survey, record: JobRecord | None, output: Output, console: Console, *, extend: bool = False
) -> NewPlan | None:
    """The plan of the rows that have no record: all rows of a job that has not begun, and those of the
    input's new files of one that is to be extended. None where there are none.

    SpecError where they should not be generated. RefusedError where the store cannot keep an output, or
    anything but new files is not as it was recorded.
    """
    new = None
    if record is None:
        new = _NewRows(survey=surveyed)
    elif extend and not (new := _added_rows(surveyed, record, output)):
        console.print("the input has no files that are new to the job")
    if not new:
        return None
    plan, findings = check_rows(new.survey, console, earlier=new.earlier)
    refuse_hopeless(new.survey, findings)
    refuse_full_disk(output.path, expected_bytes(findings, plan.job))
    if record is None:
        probe(output)
    largest = largest_part(findings, plan.job)
    refuse_large_parts(output, largest)
    return NewPlan(plan=with_hashes(plan), findings=findings, largest_bytes=largest.size_bytes)


def _added_rows(surveyed: Survey, record: JobRecord, output: Output) -> _NewRows | None:
    """The rows of the input's new files; None if there are no new files.

    RefusedError where anything else is not as it was recorded.
    """
    plan_of(record, surveyed, output.path, extends=True)
    found = find_recorded(record, surveyed)
    if not found.new:
        return None
    _refuse_other_types(surveyed, record, output)
    earlier = tuple(file for file in found.recorded if file)
    return _NewRows(survey=replace(surveyed, files=found.new), earlier=earlier)


def _refuse_other_types(surveyed: Survey, record: JobRecord, output: Output) -> None:
    """Raise RefusedError where new files change the common type of a column that the parts have already."""
    parts = list_parts(output, record.shard_names)
    if not parts:
        return
    uri = parts[0].uri
    with parquet_errors_as(RefusedError, f"{uri} is not a darkroom part"):
        before = FooterReader(output.storage).read(uri).schema.to_arrow_schema()
    for field in pa.ipc.read_schema(pa.py_buffer(surveyed.job.schema)):
        if (type_before := before.field(field.name).type) != field.type:
            raise RefusedError(
                f"the column `{field.name}` is {type_before} in the parts of {output.path}, and with the new "
                f"files it would be {field.type}; give it the same type in these, or generate them as a job "
                "with an output.path of its own"
            )
