"""The job that owns an output: `_darkroom/job.json`, written once and compared by every later run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import pyarrow as pa
from pydantic import FailFast, TypeAdapter

from actors.storage.output import Output
from jobs.in_flight import map_in_flight
from jobs.output.strict_json import parse_json
from jobs.planning.plan import Plan
from jobs.planning.row_scan import Findings
from jobs.survey.input_paths import MAX_LISTED_BYTES
from schemas.columns.input_columns import ColumnMap
from schemas.errors import RefusedError, SpecError
from schemas.job import NO_MODEL, Job, PlannedFile, StoredCount, fingerprint_of
from schemas.output_layout import (
    JOB_RECORD,
    MAX_EXTENSIONS,
    OWN_FOLDER,
    ShardNames,
    parse_record_file,
    record_file,
)
from schemas.spec.job_spec import JobSpec
from schemas.systems.model_card import ModelCard
from schemas.wording.amounts import counted
from schemas.wording.printable import listed

FORMAT = 1
"""The version of the output format that this darkroom writes and reads."""
RECORDS_AT_ONCE = 16
"""Records of extensions that are read at the same time."""
MAX_RECORD_BYTES = 4 * MAX_LISTED_BYTES
"""Room for as many files as an input may have, also if the rows of each go to dozens of models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """The content of `_darkroom/job.json`, or of `job-x0001.json`, which has what an extension adds."""

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


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The job that owns an output, with all of its extensions: enough to resume, report on and verify it."""

    stored: tuple[StoredRecord, ...]
    """The record with which the job began, and that of each extension."""

    @property
    def name(self) -> str:
        """The name that the job has by now."""
        return self.spec.name

    @property
    def spec(self) -> JobSpec:
        """The spec of the last extension: the images are those of the first, but its input may be further."""
        return self.stored[-1].spec

    @property
    def fingerprint(self) -> str:
        """The job's fingerprint, which no extension changes."""
        return self.stored[0].fingerprint

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that determines the images."""
        return self.stored[0].identity

    @property
    def models(self) -> Mapping[str, ModelCard]:
        """What each model's checkpoint was recognised as, in the order in which shards are numbered."""
        return self.stored[0].models

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """All input files: those with which the job began, and then those of each extension."""
        return tuple(file for stored in self.stored for file in stored.files)

    @property
    def nums_of_files(self) -> tuple[int, ...]:
        """How many files the job began with, and how many each extension has added."""
        return tuple(len(stored.files) for stored in self.stored)

    @property
    def shard_names(self) -> ShardNames:
        """The names of all shards."""
        return ShardNames([stored.num_shards for stored in self.stored])

    @property
    def num_shards(self) -> int:
        """The number of all shards."""
        return self.shard_names.num_shards

    @property
    def num_rows(self) -> int:
        """The number of rows in all input files."""
        return sum(file.num_rows for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """The key that job.json has in every format."""

    format: int


_HEADER = TypeAdapter(_Header)
_RECORD = TypeAdapter(StoredRecord)


def read_record(output: Output) -> JobRecord | None:
    """The record of the job that owns an output, with all extensions; None where no job has begun.

    RefusedError where a record is missing, has another format, is damaged or contradicts itself.
    """
    if (first := _read(output, JOB_RECORD)) is None:
        return None
    files = (record_file(number) for number in range(1, _num_extensions(output) + 1))
    extensions = [*map_in_flight(lambda file: _read(output, file), files, at_once=RECORDS_AT_ONCE)]
    record = JobRecord((first, *filter(None, extensions)))
    for number, extension in enumerate(extensions, 1):
        uri = output.uri(record_file(number))
        if extension is None:
            raise RefusedError(f"{uri} is missing, although a later extension of the job is there")
        if extension.fingerprint != record.fingerprint:
            raise RefusedError(f"{uri} is of another job than {JOB_RECORD}; it was damaged or changed since")
    return record


def _num_extensions(output: Output) -> int:
    """The number of the last extension that has a record; 0 if the job was not extended."""
    uris = (stored.uri for stored in output.storage.list_sizes(output.uri(OWN_FOLDER)))
    return max((parse_record_file(uri.removeprefix(f"{output.path}/")) or 0 for uri in uris), default=0)


def _read(output: Output, file: str) -> StoredRecord | None:
    """The record in this file of an output; None where there is none."""
    uri = output.uri(file)
    try:
        data = output.read(file, MAX_RECORD_BYTES)
    except FileNotFoundError:
        return None
    recorded_format = parse_json(data, _HEADER, uri).format
    if recorded_format != FORMAT:
        raise RefusedError(f"{uri} has format {recorded_format}; this darkroom reads {FORMAT}")
    record = parse_json(data, _RECORD, uri)
    for contradiction in _contradictions(record):
        raise RefusedError(f"{uri} contradicts itself: {contradiction}; it was damaged or changed since")
    return record


def _contradictions(record: StoredRecord) -> Iterator[str]:
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
    if record.num_shards != (num_shards := plan_of_record(JobRecord((record,))).num_shards):
        yield f"`num_shards` is {record.num_shards:,}, but `files` gives {num_shards:,}"


def _are_texts(columns: object) -> bool:
    return isinstance(columns, dict) and all(isinstance(column, str) for column in columns.values())


def require_record(output: Output) -> JobRecord:
    """Like `read_record`, but SpecError where no job has begun."""
    record = read_record(output)
    if record is None:
        raise SpecError(f"{output.path} is not a darkroom output: there is no {JOB_RECORD} in it")
    return record


def claim(output: Output, plan: Plan, findings: Findings, extended: JobRecord | None = None) -> JobRecord:
    """Create the output's record for this job, and return the record that the output then has.

    `extended`: the record to which the plan adds an extension. Another driver may have created its record
    first; that one is returned then. SpecError where the record could not be read back.
    """
    number = len(extended.stored) if extended else 0
    if number > MAX_EXTENSIONS:
        raise SpecError(f"the job was extended {MAX_EXTENSIONS:,} times, which is the most that it can be")
    record = StoredRecord(
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
    output.storage.create(output.uri(record_file(number)), data, {"job": record.fingerprint})
    return require_record(output)


def to_json(record: StoredRecord) -> bytes:
    """The bytes of the file with this record."""
    values = {"format": FORMAT, **asdict(record), "spec": record.spec.model_dump(mode="json")}
    return json.dumps(values, indent=2, ensure_ascii=False).encode()


def plan_of_record(record: JobRecord, path: str = "") -> Plan:
    """The recorded plan without a comparison, for commands that have no spec.

    `path`: that of the output, which may have moved; empty: as it was recorded.
    """
    columns = ColumnMap(
        fields=record.identity["columns"],
        recognised={},
        # Commands without a spec read no kept columns, and write no ids.
        keep=dict.fromkeys(record.spec.input.keep, pa.null()),
        id_type=pa.null(),
    )
    spec = record.spec
    if path:
        spec = spec.model_copy(update={"output": spec.output.model_copy(update={"path": path})})
    job = Job(spec=spec, models=record.models, columns=columns, schema=b"")
    return Plan(job=job, files=record.files, nums_of_files=record.nums_of_files)
