"""Whose output this is: `_darkroom/job.json`, written once, compared by every later run."""

import json
import posixpath
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import FailFast, TypeAdapter

from actors.storage.objects import StoredObject
from actors.storage.output import Output
from jobs.output.strict_json import parse_json
from jobs.planning.plan import Plan
from jobs.planning.row_scan import Findings
from jobs.planning.survey import Survey, SurveyedFile
from schemas.columns.input_columns import ColumnMap
from schemas.errors import RefusedError, SpecError
from schemas.job import NO_MODEL, Job, PlannedFile, StoredCount, fingerprint_of
from schemas.output_layout import JOB_RECORD
from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import ModelCard
from schemas.wording.printable import listed

FORMAT = 1
MAX_DIFFERENCES = 10
MAX_RECORD_BYTES = 64 << 20
"""A hundred thousand input files at 500 bytes each: more belong in fewer files, or in several jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What `_darkroom/job.json` says: enough to resume, report on and verify an output."""

    name: str
    fingerprint: str
    identity: dict[str, Any]
    """What makes the output; two jobs with equal ones are the same job."""
    spec: JobSpec
    """The whole spec, every default filled in."""
    models: dict[str, ModelCard]
    """What each checkpoint was recognised as."""
    # Of 60 million wrong entries one tells, and all would take all memory there is.
    files: Annotated[tuple[PlannedFile, ...], FailFast()]
    num_shards: StoredCount
    num_bad: dict[str, StoredCount]
    """Rows that the plan knew could not be made, by error_code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What every format has."""

    format: int


_HEADER = TypeAdapter(_Header)
_RECORD = TypeAdapter(JobRecord)


def read_record(output: Output) -> JobRecord | None:
    """The job that an output belongs to; None where none has begun there."""
    uri = output.uri(JOB_RECORD)
    try:
        data = output.read(JOB_RECORD, MAX_RECORD_BYTES)
    except FileNotFoundError:
        return None
    found = parse_json(data, _HEADER, uri).format
    if found != FORMAT:
        raise RefusedError(f"{uri} has format {found}; this darkroom reads {FORMAT}")
    record = parse_json(data, _RECORD, uri)
    for contradiction in _contradictions(record):
        raise RefusedError(f"{uri} contradicts itself: {contradiction}; it was damaged or changed since")
    return record


def _contradictions(record: JobRecord) -> Iterator[str]:
    """What a record says that cannot be so beside what else it says."""
    if record.name != record.spec.name:
        yield f"`name` is not that of `spec`, {record.spec.name}"
    if record.fingerprint != fingerprint_of(record.identity):
        yield "`fingerprint` is not that of `identity`"
    if not _are_texts(record.identity.get("columns")):
        yield "`identity.columns` does not name columns"
    if record.models.keys() != record.spec.models.keys():
        wanted, there = (listed(sorted(models)) for models in (record.spec.models, record.models))
        yield f"`models` are {there or 'none'}, those of `spec` {wanted}"
    for file in record.files:
        if sum(file.rows_by_model.values()) != file.num_rows:
            yield f"`rows_by_model` of {file.uri} do not add up to its {file.num_rows:,} rows"
        if unknown := file.rows_by_model.keys() - {*record.models, NO_MODEL}:
            yield f"`rows_by_model` of {file.uri} names {listed(sorted(unknown))}, which `models` does not"
    if record.num_shards != (num_shards := plan_of_record(record).num_shards):
        yield f"`num_shards` is {record.num_shards:,}, and its files come to {num_shards:,}"


def _are_texts(columns: object) -> bool:
    return isinstance(columns, dict) and all(isinstance(column, str) for column in columns.values())


def require_record(output: Output) -> JobRecord:
    """Like `read_record`, for commands that need a job to be there."""
    record = read_record(output)
    if record is None:
        raise SpecError(f"{output.path} holds no darkroom output: there is no {JOB_RECORD} in it")
    return record


def claim(output: Output, plan: Plan, findings: Findings) -> JobRecord:
    """Make the output this job's; another driver of the same job may have been first."""
    record = JobRecord(
        name=plan.job.spec.name,
        fingerprint=plan.job.fingerprint,
        identity=plan.job.identity(),
        spec=plan.job.spec,
        models=dict(plan.job.models),
        files=plan.files,
        num_shards=plan.num_shards,
        num_bad=findings.num_bad,
    )
    data = to_json(record)
    if len(data) > MAX_RECORD_BYTES:
        raise SpecError(
            f"input.path: the plan of {len(plan.files):,} files takes {len(data):,} bytes, and at most "
            f"{MAX_RECORD_BYTES:,} are read again; put the rows into fewer files, or into several jobs"
        )
    output.storage.create(output.uri(JOB_RECORD), data, {"job": record.fingerprint})
    return require_record(output)


def to_json(record: JobRecord) -> bytes:
    """The record as `_darkroom/job.json` holds it."""
    values = {"format": FORMAT, **asdict(record), "spec": record.spec.model_dump(mode="json")}
    return json.dumps(values, indent=2, ensure_ascii=False).encode()


def plan_of(record: JobRecord, survey: Survey, output: str) -> Plan:
    """The recorded plan, where this spec and this input are still the recorded ones.

    RefusedError, with the differences, where they are not.
    """
    differences = [*_differences(record.identity, survey.job.identity()), *_input_differences(record, survey)]
    if differences:
        shown = "\n  ".join(differences[:MAX_DIFFERENCES])
        more = len(differences) - MAX_DIFFERENCES
        raise RefusedError(
            f"{output} belongs to another job, or this one has changed since it began:\n  {shown}"
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nUndo the change to go on with it, or give this job an output.path of its own."
        )
    # Where the files are now: a Ray job unpacks its working directory at a new place each time.
    files = zip(record.files, survey.files, strict=True)
    return Plan(
        job=survey.job, files=tuple(replace(planned, uri=found.stored.uri) for planned, found in files)
    )


def _differences(there: object, here: object, at: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = dict.fromkeys([*there, *here])
        return [
            line
            for key in keys
            for line in _differences(there.get(key), here.get(key), f"{at}.{key}" if at else str(key))
        ]
    if there == here:
        return []
    return [f"{at.removeprefix('spec.')}: {_shown(there)} there, {_shown(here)} here"]


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _input_differences(record: JobRecord, survey: Survey) -> list[str]:
    if [_content(file) for file in record.files] == [_content(file.stored) for file in survey.files]:
        pairs = zip(record.files, survey.files, strict=True)
        return [line for planned, found in pairs for line in _row_differences(planned, found)]
    there = {file.uri: file for file in record.files}
    here = {file.stored.uri: file.stored for file in survey.files}
    lines = [f"input: {uri} is gone" for uri in there if uri not in here]
    lines += [f"input: {uri} is new" for uri in here if uri not in there]
    for uri in there.keys() & here.keys():
        mine, theirs = there[uri], here[uri]
        if (mine.size_bytes, mine.etag) != (theirs.size_bytes, theirs.etag):
            lines.append(
                f"input: {uri} has changed ({mine.size_bytes:,} bytes there, {theirs.size_bytes:,} here)"
            )
    return lines


def _row_differences(there: PlannedFile, here: SurveyedFile) -> list[str]:
    """None, unless the record was changed: a file of the same content has the same rows."""
    if there.num_rows == here.num_rows:
        return []
    return [f"input: {there.uri} has {here.num_rows:,} rows, not the {there.num_rows:,} of {JOB_RECORD}"]


def _content(file: PlannedFile | StoredObject) -> tuple[str, int, str]:
    return posixpath.basename(file.uri), file.size_bytes, file.etag


def plan_of_record(record: JobRecord) -> Plan:
    """The recorded plan as it stands, for commands that have no spec: nothing is compared."""
    keep = tuple(dict.fromkeys(record.spec.input.keep))
    columns = ColumnMap(fields=record.identity["columns"], recognised={}, keep=keep)
    job = Job(spec=record.spec, models=record.models, columns=columns, schema=b"")
    return Plan(job=job, files=record.files)
