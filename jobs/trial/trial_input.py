"""The input of a trial: the sampled rows, with the ids that they have in the job, as Parquet."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from actors.storage.output import Output
from actors.storage.stores import Stores
from jobs.intake.parquet_copies import CopyFolder
from jobs.output.job_record import JobRecord, plan_of_record
from jobs.planning.plan import Plan
from jobs.survey.survey import Survey, SurveyedFile
from jobs.trial.row_sample import SampledRow
from schemas.columns.cells import LINE_COLUMN
from schemas.columns.output_columns import output_schema
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import SpecError
from schemas.job import Job, PlannedFile
from schemas.output_layout import input_copy
from schemas.spec.job_spec import InputSpec, JobSpec

ROWS_AT_ONCE = 64
"""Rows that are read together: each may have images of some megabytes."""


def names_of_files(survey: Survey, record: JobRecord | None) -> dict[str, str]:
    """By URI, the names with which the ids of files' rows begin in the job. `record`: that of its output."""
    files = tuple(
        PlannedFile(uri=file.stored.uri, size_bytes=0, etag="", num_rows=file.num_rows, rows_by_model={})
        for file in survey.files
    )
    of_record = plan_of_record(record).file_names if record else {}
    return Plan(job=survey.job, files=files).file_names | of_record


def survey_of_rows(survey: Survey, rows: Sequence[SampledRow], spec: JobSpec) -> Survey:
    """The survey of a job with these rows alone.

    `spec`: that of the trial, which differs from the job's in its output. The rows are read in copies; all
    else, such as paths beside their file, is as for the file itself.
    """
    folder = CopyFolder()
    job = _with_ids(survey.job, spec)
    by_uri: defaultdict[str, dict[int, SampledRow]] = defaultdict(dict)
    for row in rows:
        by_uri[row.uri][row.row] = row
    files = [
        _file_of_rows(file, by_uri[file.stored.uri], job, folder)
        for file in survey.files
        if file.stored.uri in by_uri
    ]
    return replace(survey, job=job, files=tuple(files), copies=folder)


def store_prompts(output: Output, prompts: Sequence[str]) -> InputSpec:
    """Store these prompts in an output, and return the input that they are."""
    ids = [f"prompt-{number}" for number in range(1, len(prompts) + 1)]
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"row_id": ids, "prompt": [*prompts]}), file)
    content = memoryview(file.getvalue())
    uri = output.uri(input_copy("prompts", hashlib.sha256(content).hexdigest()))
    output.storage.create(uri, content, {})
    return InputSpec(path=uri)


def _with_ids(job: Job, spec: JobSpec) -> Job:
    """The job with this spec, and with a column of ids: rows cannot be named after their place in a copy."""
    columns = job.columns
    if "row_id" not in columns.fields:
        taken = columns.columns()
        name = next(name for name in ("row_id", "darkroom_row_id") if name not in taken)
        columns = replace(columns, fields={"row_id": name, **columns.fields}, id_type=pa.string())
    schema = output_schema(spec, dict(job.models), columns)
    return replace(job, spec=spec, columns=columns, schema=schema.serialize().to_pybytes())


def _file_of_rows(
    file: SurveyedFile, rows: Mapping[int, SampledRow], job: Job, folder: CopyFolder
) -> SurveyedFile:
    """The file with a copy that has only these rows, by their numbers in the file."""
    stores = Stores(job.spec.errors.storage_deadline_s)
    with (
        parquet_errors_as(SpecError, f"input.path: {file.stored.uri} cannot be read"),
        stores.of(file.rows_uri).open(file.rows_uri) as source,
        pq.ParquetFile(source) as parquet,
    ):
        table = _rows_of(parquet, sorted(rows), [*job.columns.columns(), LINE_COLUMN])
    if (column := job.columns.fields["row_id"]) not in table.column_names:
        ids = pa.array([str(rows[row].row_id) for row in sorted(rows)], pa.string())
        table = table.append_column(column, ids)
    copy = folder.copy_table(table, file.stored)
    return replace(file, num_rows=len(rows), copy=copy)


def _rows_of(parquet: pq.ParquetFile, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """These rows of a file, in ascending order. Only row groups that have one of them are read."""
    names = [name for name in columns if name in parquet.schema_arrow.names]
    taken = []
    first = 0
    for group in range(parquet.num_row_groups):
        end = first + parquet.metadata.row_group(group).num_rows
        if any(first <= row < end for row in rows):
            for batch in parquet.iter_batches(ROWS_AT_ONCE, [group], names):
                inside = [row - first for row in rows if first <= row < first + batch.num_rows]
                taken.append(batch.take(pa.array(inside, pa.int64())))
                first += batch.num_rows
        first = end
    return pa.Table.from_batches(taken)
