"""A recorded job that goes on: its plan, with what the spec and the input are now; refused if they differ."""

import json
import posixpath
import re
from collections.abc import Collection, Iterator
from dataclasses import replace

from actors.storage.objects import StoredObject
from actors.storage.stores import Stores
from jobs.output.content_hashes import changed_files
from jobs.output.job_record import JobRecord
from jobs.planning.plan import Plan
from jobs.survey.survey import Survey, SurveyedFile, make_survey
from schemas.columns.folder_columns import folder_columns
from schemas.errors import RefusedError
from schemas.job import PlannedFile
from schemas.output_layout import JOB_RECORD
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted

MAX_DIFFERENCES = 10
"""Differences that a refusal lists."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
"""The revision in the card of a checkpoint on the Hub."""


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
