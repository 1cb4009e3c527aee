"""The job that owns an output: `_darkroom/job.json`, written once and compared by every later run."""

import json
import posixpath
import re
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import pyarrow as pa
from pydantic import FailFast, TypeAdapter

from actors.storage.objects import StoredObject
from actors.storage.output import Output
from actors.storage.stores import Stores
from jobs.output.content_hashes import changed_files
from jobs.output.strict_json import parse_json
from jobs.planning.plan import Plan
from jobs.planning.row_scan import Findings
from jobs.survey.input_paths import MAX_LISTED_BYTES
from jobs.survey.survey import Survey, SurveyedFile, make_survey
from schemas.columns.folder_columns import folder_columns
from schemas.columns.input_columns import ColumnMap
from schemas.errors import RefusedError, SpecError
from schemas.job import NO_MODEL, Job, PlannedFile, StoredCount, fingerprint_of
from schemas.output_layout import JOB_RECORD
from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import ModelCard
from schemas.wording.amounts import counted
from schemas.wording.printable import listed

FORMAT = 1
"""The version of the output format that this darkroom writes and reads."""
MAX_DIFFERENCES = 10
"""Differences that a refusal lists."""
MAX_RECORD_BYTES = 4 * MAX_LISTED_BYTES
"""Room for as many files as an input may have, also if the rows of each go to dozens of models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """The content of `_darkroom/job.json`: enough to resume, report on and verify an output."""

    name: str
    fingerprint: str
    identity: dict[str, Any]
    """Everything that determines the images; two jobs with equal identities are the same job."""
    spec: JobSpec
    """The whole spec, with every default filled in."""
    models: dict[str, ModelCard]
    """What each model's checkpoint was recognised as."""
    # FailFast: 60 million wrong entries, reported one by one, would take all of the memory.
    files: Annotated[tuple[PlannedFile, ...], FailFast()]
    num_shards: StoredCount
    num_bad: dict[str, StoredCount]
    """By error_code, the number of rows that the plan found to be invalid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """The key that job.json has in every format."""

    format: int


_COMMIT = re.compile(r"[0-9a-f]{40}")
"""The revision in the card of a checkpoint on the Hub."""
_HEADER = TypeAdapter(_Header)
_RECORD = TypeAdapter(JobRecord)


def read_record(output: Output) -> JobRecord | None:
    """The record of the job that owns an output; None where no job has begun.

    RefusedError where the record has another format, is damaged or contradicts itself.
    """
    uri = output.uri(JOB_RECORD)
    try:
        data = output.read(JOB_RECORD, MAX_RECORD_BYTES)
    except FileNotFoundError:
        return None
    recorded_format = parse_json(data, _HEADER, uri).format
    if recorded_format != FORMAT:
        raise RefusedError(f"{uri} has format {recorded_format}; this darkroom reads {FORMAT}")
    record = parse_json(data, _RECORD, uri)
    for contradiction in _contradictions(record):
        raise RefusedError(f"{uri} contradicts itself: {contradiction}; it was damaged or changed since")
    return record


def _contradictions(record: JobRecord) -> Iterator[str]:
    """Contradictions between the record's own values, each as one phrase."""
    if record.name != record.spec.name:
        yield f"`name` is not that of `spec`, {record.spec.name}"
    if record.fingerprint != fingerprint_of(record.identity):
        yield "`fingerprint` is not that of `identity`"
    if not _are_texts(record.identity.get("columns")):
        yield "`identity.columns` does not name columns"
    if record.models.keys() != record.spec.models.keys():
        expected, recorded = (listed(sorted(models)) for models in (record.spec.models, record.models))
        yield f"`models` are {recorded or 'none'}, but those of `spec` are {expected}"
    for file in record.files:
        if sum(file.rows_by_model.values()) != file.num_rows:
            yield f"`rows_by_model` of {file.uri} do not add up to its {counted(file.num_rows, 'row')}"
        if unknown := file.rows_by_model.keys() - {*record.models, NO_MODEL}:
            yield f"`rows_by_model` of {file.uri} names {listed(sorted(unknown))}, which `models` does not"
    if record.num_shards != (num_shards := plan_of_record(record).num_shards):
        yield f"`num_shards` is {record.num_shards:,}, but `files` gives {num_shards:,}"


def _are_texts(columns: object) -> bool:
    return isinstance(columns, dict) and all(isinstance(column, str) for column in columns.values())


def require_record(output: Output) -> JobRecord:
    """Like `read_record`, but SpecError where no job has begun."""
    record = read_record(output)
    if record is None:
        raise SpecError(f"{output.path} is not a darkroom output: there is no {JOB_RECORD} in it")
    return record


def claim(output: Output, plan: Plan, findings: Findings) -> JobRecord:
    """Create the output's record for this job, and return the record that the output then has.

    Another driver may have created its record first; that one is returned then.
    """
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
            f"input.path: the plan of {counted(len(plan.files), 'file')} has {len(data):,} bytes; at most "
            f"{MAX_RECORD_BYTES:,} can be read back; put the rows into fewer files, or into several jobs"
        )
    output.storage.create(output.uri(JOB_RECORD), data, {"job": record.fingerprint})
    return require_record(output)


def to_json(record: JobRecord) -> bytes:
    """The bytes of `_darkroom/job.json` for this record."""
    values = {"format": FORMAT, **asdict(record), "spec": record.spec.model_dump(mode="json")}
    return json.dumps(values, indent=2, ensure_ascii=False).encode()


def survey_of(spec: JobSpec, record: JobRecord | None) -> Survey:
    """The survey of a job that is new (None), or has begun: then of the Hub's commits that it began with.

    A branch may move in the meantime. The spec may name the commit then, or what it named before.
    """
    if record is None:
        return make_survey(spec)
    models, commits = dict(spec.models), {}
    for name in models.keys() & record.models.keys():
        commit, recorded, present = record.models[name].revision, record.spec.models[name], models[name]
        same = present.checkpoint == recorded.checkpoint and present.revision in (recorded.revision, commit)
        if same and _COMMIT.fullmatch(commit):
            commits[name] = commit
            models[name] = present.model_copy(update={"revision": recorded.revision})
    return make_survey(spec.model_copy(update={"models": models}), commits)


def plan_of(record: JobRecord, survey: Survey, output: str) -> Plan:
    """The recorded plan, with the input files at their present URIs.

    RefusedError, with the differences, where this spec, checkpoint or input is not the recorded one.
    """
    differences = [
        *_differences(record.identity, survey.job.identity()),
        *_checkpoint_differences(record, survey),
        *_input_differences(record, survey),
    ]
    if differences:
        shown = "\n  ".join(differences[:MAX_DIFFERENCES])
        num_more = len(differences) - MAX_DIFFERENCES
        raise RefusedError(
            f"{output} belongs to another job, or this job has changed since it began:\n  {shown}"
            + (f"\n  and {num_more} more" if num_more > 0 else "")
            + "\nUndo the change to continue this job, or choose another output.path for a new job."
        )
    # Shards are numbered in the order of the models, so the recorded order counts, not the present one.
    job = replace(survey.job, models={name: survey.job.models[name] for name in record.models})
    return Plan(
        job=job, files=_present_files(record, survey), first_uris=tuple(file.uri for file in record.files)
    )


def _present_files(record: JobRecord, survey: Survey) -> tuple[PlannedFile, ...]:
    """The recorded files where they are now, without hashes if the spec no longer asks for them.

    They may have moved: a Ray job unpacks its working directory into a new folder each time.
    """
    has_hashes = survey.job.spec.input.hash == "whole"
    return tuple(
        replace(planned, uri=file.stored.uri, sha256=planned.sha256 if has_hashes else "")
        for planned, file in zip(record.files, survey.files, strict=True)
    )


def _differences(recorded: object, present: object, key: str = "") -> list[str]:
    """One line for each key in which two identities differ."""
    if isinstance(recorded, dict) and isinstance(present, dict):
        return [
            line
            for name in dict.fromkeys([*recorded, *present])
            for line in _differences(
                recorded.get(name), present.get(name), f"{key}.{name}" if key else str(name)
            )
        ]
    if recorded == present:
        return []
    return [f"{key.removeprefix('spec.')}: was {_shown(recorded)}, is now {_shown(present)}"]


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _checkpoint_differences(record: JobRecord, survey: Survey) -> Iterator[str]:
    """One line for each file of a checkpoint's folder that is missing, new or changed."""
    for name in record.models.keys() & survey.job.models.keys():
        recorded, present = record.models[name].files, survey.job.models[name].files
        # A job of an older version, or one that went from the Hub to a folder, has nothing to compare.
        for file in sorted(recorded.keys() | present.keys()) if recorded and present else ():
            if recorded.get(file) != present.get(file):
                change = (
                    "is new" if file not in recorded else "is missing" if file not in present else "changed"
                )
                yield f"models.{name}: {file} {change}"


def _input_differences(record: JobRecord, survey: Survey) -> list[str]:
    """One line for each input file that is missing, new or changed."""
    columns = survey.job.columns.columns()
    contents = [(_content(file), _from_folders(file.uri, columns)) for file in record.files]
    stored = [file.stored for file in survey.files]
    if contents == [(_content(file), _from_folders(file.uri, columns)) for file in stored]:
        pairs = zip(record.files, survey.files, strict=True)
        lines = [line for planned, surveyed in pairs for line in _row_differences(planned, surveyed)]
        stores = Stores(survey.job.spec.errors.storage_deadline_s)
        changed = changed_files(_present_files(record, survey), stores)
        return lines + [f"input: {uri} has changed (its size and its ends have not)" for uri in changed]
    recorded = {file.uri: file for file in record.files}
    present = {file.stored.uri: file.stored for file in survey.files}
    lines = [f"input: {uri} is missing" for uri in recorded if uri not in present]
    lines += [f"input: {uri} is new" for uri in present if uri not in recorded]
    for uri in recorded.keys() & present.keys():
        before, now = recorded[uri], present[uri]
        if (before.size_bytes, before.etag) != (now.size_bytes, now.etag):
            sizes = f"was {counted(before.size_bytes, 'byte')}, is now {counted(now.size_bytes, 'byte')}"
            lines.append(f"input: {uri} has changed ({sizes})")
    return lines


def _row_differences(planned: PlannedFile, surveyed: SurveyedFile) -> list[str]:
    """One line if the numbers of rows differ, which only a changed record can cause: the content is equal."""
    if planned.num_rows == surveyed.num_rows:
        return []
    present = counted(surveyed.num_rows, "row")
    return [f"input: {planned.uri} has {present}, not the {planned.num_rows:,} of {JOB_RECORD}"]


def _content(file: PlannedFile | StoredObject) -> tuple[str, int, str]:
    """The file's name, size and ETag: equal for the same content, wherever it is."""
    return posixpath.basename(file.uri), file.size_bytes, file.etag


def _from_folders(uri: str, columns: Collection[str]) -> dict[str, str | None]:
    """The values of those columns that the names of a file's folders give."""
    return {name: value for name, value in folder_columns(uri).items() if name in columns}


def plan_of_record(record: JobRecord) -> Plan:
    """The recorded plan without a comparison, for commands that have no spec."""
    columns = ColumnMap(
        fields=record.identity["columns"],
        recognised={},
        # Commands without a spec read no kept columns, and write no ids.
        keep=dict.fromkeys(record.spec.input.keep, pa.null()),
        id_type=pa.null(),
    )
    job = Job(spec=record.spec, models=record.models, columns=columns, schema=b"")
    return Plan(job=job, files=record.files)
