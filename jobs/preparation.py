"""What comes before generation: which rows an output has no record of, their plan, and the record.

`darkroom plan` shows it, and `darkroom run` acts by it.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa
from rich.console import Console

from actors.inputs.footers import FooterReader
from actors.parts.commit import probe
from actors.storage.output import Output, open_output
from jobs.output.capacity import bytes_to_come, refuse_full_disk, refuse_large_parts
from jobs.output.content_hashes import with_hashes
from jobs.output.job_record import JobRecord, claim, read_record
from jobs.output.lease import Lease
from jobs.output.parts import list_parts
from jobs.output.resumption import find_recorded, plan_of, survey_of
from jobs.planning.plan import Plan, expected_bytes, largest_part
from jobs.planning.plan_text import check_rows, print_notes, print_plan, refuse_hopeless
from jobs.planning.row_scan import MAX_EXAMPLES
from jobs.reports.success import unfinish
from jobs.survey.survey import Survey, SurveyedFile
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import RefusedError, StorageError
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted

PLAN_DEADLINE_S = 20.0
"""How long a plan repeats requests for an output that it cannot reach. It can be made without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _NewRows:
    """Rows that an output has no record of."""

    survey: Survey
    """The survey of their files alone."""
    earlier: tuple[SurveyedFile, ...] = ()
    """The files that the record has."""


class Prepared(NamedTuple):
    """A job that can be run."""

    plan: Plan
    record: JobRecord
    largest_bytes: int
    """An estimate of the largest part of the rows that were recorded now; 0 if there are none."""


def show_plan(
    spec: JobSpec, console: Console, *, extend: bool = False, max_examples: int = MAX_EXAMPLES
) -> None:
    """Print the plan of a run, of new files alone if it is to `extend` the job.

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
    elif extend:
        new = _added_rows(surveyed, record, output)
    shown = new or _NewRows(survey=surveyed)
    plan, findings = check_rows(shown.survey, console, max_examples, shown.earlier)
    print_plan(plan, findings, console)
    if new:
        refuse_hopeless(new.survey, findings, listed=True)
        refuse_full_disk(output.path, expected_bytes(findings, plan.job))
    elif record:
        plan_of(record, surveyed, output.path)
        num_parts = len(list_parts(output, record.shard_names))
        console.print(
            f"{output.path} is of this job, and has {num_parts:,} of {counted(record.num_shards, 'part')}",
            soft_wrap=True,
        )
        refuse_full_disk(output.path, bytes_to_come(output, record.shard_names))


def prepare(
    surveyed: Survey, record: JobRecord | None, output: Output, console: Console, *, extend: bool = False
) -> Prepared:
    """The plan and the record of a job; rows that have none are recorded first.

    These are all rows of a job that has not begun and, if it is to `extend`, those of the input's new files.
    RefusedError where this spec or input is not the recorded one, or another driver is at work on an output
    that is to be extended.
    """
    largest_bytes = 0
    if record is None:
        record, largest_bytes = _record(_NewRows(survey=surveyed), record, output, console)
    elif extend and (new := _added_rows(surveyed, record, output)):
        record, largest_bytes = _record(new, record, output, console)
    elif extend:
        console.print("the input has no files that are new to the job")
    return Prepared(plan_of(record, surveyed, output.path), record, largest_bytes)


def _record(
    new: _NewRows, record: JobRecord | None, output: Output, console: Console
) -> tuple[JobRecord, int]:
    """The record of the output with the new rows; an estimate of their largest part's size, in bytes.

    SpecError where they should not be generated.
    """
    plan, findings = check_rows(new.survey, console, earlier=new.earlier)
    refuse_hopeless(new.survey, findings)
    refuse_full_disk(output.path, expected_bytes(findings, plan.job))
    if record is None:
        probe(output)
    largest = largest_part(findings, plan.job)
    refuse_large_parts(output, largest)
    plan = with_hashes(plan)
    if record is None:
        return claim(output, plan, findings), largest.size_bytes
    with Lease(output):
        # No report is to be believed that is older than the new rows.
        unfinish(output)
        return claim(output, plan, findings, record), largest.size_bytes


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
