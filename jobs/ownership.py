"""Whose output this is: `_darkroom/job.json`, written once, compared by every later run."""

import json
import posixpath
from dataclasses import asdict, dataclass, replace
from typing import Any

from actors.storage import Storage, StoredObject, join
from jobs.plan import Findings, Plan
from jobs.survey import Survey
from schemas.columns import ColumnMap
from schemas.errors import RefusedError, SpecError
from schemas.job import RECORD, Job, ModelCard, PlannedFile
from schemas.spec import JobSpec

FORMAT = 1
MAX_DIFFERENCES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What `_darkroom/job.json` says: enough to resume, report on and verify an output."""

    name: str
    fingerprint: str
    identity: dict[str, Any]
    """What makes the output; two jobs with equal ones are the same job."""
    spec: dict[str, Any]
    """The whole spec, every default filled in."""
    models: dict[str, ModelCard]
    """What each checkpoint was recognised as."""
    files: tuple[PlannedFile, ...]
    num_shards: int
    num_bad: dict[str, int]
    """Rows that the plan knew could not be made, by error_code."""


def read_record(storage: Storage, output: str) -> JobRecord | None:
    """The job that an output belongs to; None where none has begun there."""
    try:
        found = json.loads(storage.read(join(output, RECORD)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RefusedError(f"{join(output, RECORD)} is not darkroom's: {error}") from error
    if found.get("format") != FORMAT:
        raise RefusedError(
            f"{join(output, RECORD)} has format {found.get('format')}; this darkroom reads {FORMAT}"
        )
    return JobRecord(
        name=found["name"],
        fingerprint=found["fingerprint"],
        identity=found["identity"],
        spec=found["spec"],
        models={name: ModelCard(**card) for name, card in found["models"].items()},
        files=tuple(PlannedFile(**file) for file in found["files"]),
        num_shards=found["num_shards"],
        num_bad=found["num_bad"],
    )


def require_record(storage: Storage, output: str) -> JobRecord:
    """Like `read_record`, for commands that need a job to be there."""
    record = read_record(storage, output)
    if record is None:
        raise SpecError(f"{output} holds no darkroom output: there is no {RECORD} in it")
    return record


def claim(storage: Storage, output: str, plan: Plan, findings: Findings) -> JobRecord:
    """Make the output this job's; another driver of the same job may have been first."""
    record = JobRecord(
        name=plan.job.spec.name,
        fingerprint=plan.job.fingerprint,
        identity=plan.job.identity(),
        spec=plan.job.spec.model_dump(mode="json"),
        models=dict(plan.job.models),
        files=plan.files,
        num_shards=plan.num_shards,
        num_bad=findings.num_bad,
    )
    text = json.dumps({"format": FORMAT, **asdict(record)}, indent=2, ensure_ascii=False)
    storage.create(join(output, RECORD), text.encode(), {"job": record.fingerprint})
    return require_record(storage, output)


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
        return []
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


def _content(file: PlannedFile | StoredObject) -> tuple[str, int, str]:
    return posixpath.basename(file.uri), file.size_bytes, file.etag


def plan_of_record(record: JobRecord) -> Plan:
    """The recorded plan as it stands, for commands that have no spec: nothing is compared."""
    spec = JobSpec.model_validate(record.spec)
    columns = ColumnMap(
        fields=record.identity["columns"], recognised={}, keep=tuple(dict.fromkeys(spec.input.keep))
    )
    job = Job(spec=spec, models=record.models, columns=columns, schema=b"")
    return Plan(job=job, files=record.files)
