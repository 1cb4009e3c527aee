"""A recorded job that goes on: its plan, with what the spec and the input are now; refused if they differ."""

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from actors.storage.objects import StoredObject
from actors.storage.stores import Stores
from actors.storage.uris import normalise
from jobs.intake.taking_in import EarlierInput
from jobs.output.content_hashes import changed_files
from jobs.output.job_record import JobRecord
from jobs.planning.plan import Plan
from jobs.survey.survey import Survey, SurveyedFile, make_survey
from schemas.columns.folder_columns import folder_columns
from schemas.errors import RefusedError
from schemas.job import PlannedFile, ip_adapter_spec
from schemas.output_layout import JOB_RECORD
from schemas.spec.adapter_spec import AdapterSpec, ControlNetSpec
from schemas.spec.component_spec import ComponentSpec
from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import AdapterFile, ComponentCard, ControlNetCard, ModelCard
from schemas.wording.amounts import counted

SHOWN_HASH = 12
"""The first characters of a file's hash that a message shows."""
MAX_DIFFERENCES = 10
"""Differences that a refusal lists."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SpecT = TypeVar("_SpecT", ComponentSpec, ControlNetSpec)
"""The revision in the card of a checkpoint on the Hub."""


def survey_of(spec: JobSpec, record: JobRecord | None) -> Survey:
    """The survey of a job that is new (None), or has begun: then of the Hub's commits that it began with, and
    of the copies of its input that the output has.

    A branch may move in the meantime. The spec may name the commit then, or what it named before.
    """
    if record is None:
        return make_survey(spec)
    paths = record.spec.input.path
    earlier = EarlierInput(
        paths=[paths] if isinstance(paths, str) else paths,
        files=record.files,
        output=normalise(spec.output.path),
    )
    models, pins = dict(spec.models), {}
    for name in models.keys() & record.models.keys():
        card, recorded, present = record.models[name], record.spec.models[name], models[name]
        same = present.checkpoint == recorded.checkpoint and present.revision in (
            recorded.revision,
            card.revision,
        )
        if same and _COMMIT.fullmatch(card.revision):
            models[name] = present = present.model_copy(update={"revision": recorded.revision})
            pins[name] = present.model_copy(update={"revision": card.revision})
        if present.components and present.components == recorded.components:
            pin = pins.get(name, present)
            pins[name] = pin.model_copy(
                update={"components": _at_commits(present.components, card.components)}
            )
        for key in ("loras", "embeddings"):
            own, of_record = getattr(present, key), getattr(recorded, key)
            if own:
                at_commits = _files_at_commits(own, of_record, getattr(card, key))
                pins[name] = pins.get(name, present).model_copy(update={key: own | at_commits})
                as_recorded = {file: of_record[file] for file in at_commits}
                models[name] = models[name].model_copy(update={key: own | as_recorded})
        if present.controlnets and present.controlnets == recorded.controlnets:
            nets = _at_commits(present.controlnets, card.controlnets)
            pins[name] = pins.get(name, present).model_copy(update={"controlnets": nets})
        if present.ip_adapters and present.ip_adapters == recorded.ip_adapters:
            adapters = {key: ip_adapter_spec(each) for key, each in card.ip_adapters.items()}
            pins[name] = pins.get(name, present).model_copy(update={"ip_adapters": adapters})
    return make_survey(spec.model_copy(update={"models": models}), pins, earlier)


def _at_commits(
    specs: Mapping[str, _SpecT], cards: Mapping[str, ComponentCard] | Mapping[str, ControlNetCard]
) -> dict[str, _SpecT]:
    """These entries of the spec, by name; those that are on the Hub at the commits of their cards."""
    commits = {name: card.revision for name, card in cards.items()}
    return {
        name: spec.model_copy(update={"revision": commits[name]})
        if _COMMIT.fullmatch(commits.get(name, ""))
        else spec
        for name, spec in specs.items()
    }


def _files_at_commits(
    present: Mapping[str, AdapterSpec],
    recorded: Mapping[str, AdapterSpec],
    cards: Mapping[str, AdapterFile],
) -> dict[str, AdapterSpec]:
    """The adapters' files that are on the Hub, and that the record has too, at the commits of their cards."""
    pinned = {}
    for name in present.keys() & recorded.keys() & cards.keys():
        commit, now, then = cards[name].revision, present[name], recorded[name]
        if commit and now in (then, then.model_copy(update={"revision": commit})):
            pinned[name] = then.model_copy(update={"revision": commit})
    return pinned


def plan_of(record: JobRecord, survey: Survey, output: str, *, extends: bool = False) -> Plan:
    """The recorded plan, with the input files at their present URIs.

    RefusedError, with the differences, where this spec, checkpoint or input is not the recorded one.
    `extends`: the input may have further files, which are not in the plan.
    """
    found = find_recorded(record, survey)
    differences = [
        *_differences(record.identity, survey.job.identity()),
        *_checkpoint_differences(record, survey),
        *_input_differences(record, survey, found, extends=extends),
    ]
    if differences:
        has_only_grown = not extends and len(differences) == len(found.new) and None not in found.recorded
        raise RefusedError(_refusal(output, differences, has_only_grown=has_only_grown))
    # Shards are numbered in the order of the models, so the recorded order counts, not the present one.
    job = replace(survey.job, models={name: survey.job.models[name] for name in record.models})
    return Plan(
        job=job,
        files=_present_files(record, survey, found),
        first_uris=tuple(file.uri for file in record.files),
        nums_of_files=record.nums_of_files,
    )


def _refusal(output: str, differences: Sequence[str], *, has_only_grown: bool) -> str:
    """The message about these differences; `has_only_grown`: they are new files of the input, and no more."""
    if has_only_grown:
        what = "is of this job, but the input has further files by now"
        ways_out = (
            "To make them part of the job, run it with --extend. To leave it as it was, take the files away."
        )
    else:
        what = "belongs to another job, or this job has changed since it began"
        ways_out = "Undo the change to continue this job, or choose another output.path for a new job."
    shown = "\n  ".join(differences[:MAX_DIFFERENCES])
    num_more = len(differences) - MAX_DIFFERENCES
    more = f"\n  and {num_more} more" if num_more > 0 else ""
    return f"{output} {what}:\n  {shown}{more}\n{ways_out}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFiles:
    """The input's files, compared with those of a record by name, size, etag and the columns of folders."""

    recorded: tuple[SurveyedFile | None, ...]
    """For each recorded file, the file that it is now; None if there is no such file.

    It may have moved: a Ray job unpacks its working directory into a new folder each time.
    """
    new: tuple[SurveyedFile, ...]
    """The files that are no recorded ones."""


def find_recorded(record: JobRecord, survey: Survey) -> FoundFiles:
    """The files of the survey that the record has, wherever they are now, and the others."""
    columns = survey.job.columns.columns()
    left: defaultdict[_Content, dict[str, SurveyedFile]] = defaultdict(dict)
    for file in survey.files:
        left[_content(file.stored, columns)][file.stored.uri] = file
    contents = [_content(file, columns) for file in record.files]
    # A file that is where it was is that file, although others may look like it.
    found = [left[content].pop(file.uri, None) for content, file in zip(contents, record.files, strict=True)]
    moved = {content: iter([*files.values()]) for content, files in left.items()}
    recorded = tuple(
        file or next(moved[content], None) for content, file in zip(contents, found, strict=True)
    )
    known = {file.stored.uri for file in recorded if file}
    return FoundFiles(
        recorded=recorded, new=tuple(file for file in survey.files if file.stored.uri not in known)
    )


def _present_files(record: JobRecord, survey: Survey, found: FoundFiles) -> tuple[PlannedFile, ...]:
    """The recorded files where they are now, without hashes if the spec no longer asks for them."""
    has_hashes = survey.job.spec.input.hash == "whole"
    return tuple(
        replace(planned, uri=file.stored.uri, sha256=planned.sha256 if has_hashes else "")
        for planned, file in zip(record.files, found.recorded, strict=True)
        if file
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
        recorded, present = (_hashes(models[name]) for models in (record.models, survey.job.models))
        # A job of an older version, or one that went from the Hub to a folder, has nothing to compare.
        for file in sorted(recorded.keys() | present.keys()) if recorded and present else ():
            if recorded.get(file) != present.get(file):
                change = (
                    "is new" if file not in recorded else "is missing" if file not in present else "changed"
                )
                yield f"models.{name}: {file} {change}"


def _hashes(card: ModelCard) -> dict[str, str]:
    """By name, the hashes of the checkpoint's files and of its named components'."""
    hashes = dict(card.files)
    for part, component in card.components.items():
        hashes |= {f"{part}/{name}": digest for name, digest in component.files.items()}
    return hashes


def _input_differences(record: JobRecord, survey: Survey, found: FoundFiles, *, extends: bool) -> list[str]:
    """One line for each input file that is missing or changed, or new, unless the job `extends` to those."""
    pairs = [*zip(record.files, found.recorded, strict=True)]
    missing = {planned.uri: planned for planned, surveyed in pairs if not surveyed}
    new = {file.stored.uri: file.stored for file in found.new}
    lines = [f"input: {uri} is missing" for uri in missing if uri not in new]
    if not extends:
        lines += [f"input: {uri} is new" for uri in new if uri not in missing]
    for uri in missing.keys() & new.keys():
        before, now = missing[uri], new[uri]
        change = f"was {counted(before.size_bytes, 'byte')}, is now {counted(now.size_bytes, 'byte')}"
        if before.size_bytes == now.size_bytes:
            change = f"its hash was {before.etag[:SHOWN_HASH]}, is now {now.etag[:SHOWN_HASH]}"
        lines.append(f"input: {uri} has changed ({change})")
    if not lines:
        lines = [line for planned, file in pairs if file for line in _row_differences(planned, file)]
        stores = Stores(survey.job.spec.errors.storage_deadline_s)
        changed = changed_files(_present_files(record, survey, found), stores)
        lines += [f"input: {uri} has changed (its size and its ends have not)" for uri in changed]
    return lines


def _row_differences(planned: PlannedFile, surveyed: SurveyedFile) -> list[str]:
    """One line if the numbers of rows differ, which only a changed record can cause: the content is equal."""
    if planned.num_rows == surveyed.num_rows:
        return []
    present = counted(surveyed.num_rows, "row")
    return [f"input: {planned.uri} has {present}, not the {planned.num_rows:,} of {JOB_RECORD}"]


class _Content(NamedTuple):
    """What is equal for the same content, wherever the file is."""

    name: str
    size_bytes: int
    etag: str
    from_folders: tuple[tuple[str, str | None], ...]
    """The values of columns that the names of its folders give."""


def _content(file: PlannedFile | StoredObject, columns: Collection[str]) -> _Content:
    """The file's content; `columns`: those that the job reads."""
    from_folders = ((name, value) for name, value in folder_columns(file.uri).items() if name in columns)
    return _Content(posixpath.basename(file.uri), file.size_bytes, file.etag, tuple(sorted(from_folders)))
