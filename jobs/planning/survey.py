"""The survey of a job: its input files and columns, and its checkpoints. Only footers are read, no rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from actors.checkpoints.checkpoint_folders import build_demo_checkpoints
from actors.checkpoints.model_cards import read_card
from actors.checkpoints.weights_check import check_weights
from actors.inputs.footers import read_footer
from actors.storage.objects import StoredObject
from actors.storage.stores import Stores
from actors.storage.uris import join
from jobs.in_flight import map_in_flight
from jobs.planning.input_paths import InputPath, find_files, input_paths, normalised
from jobs.planning.route_checks import check_routes
from schemas.columns.input_columns import ColumnMap, map_columns
from schemas.columns.output_columns import output_schema
from schemas.errors import SpecError
from schemas.job import Job
from schemas.output_layout import part_file, shard_name
from schemas.spec.job_spec import JobSpec
from schemas.systems.system_table import SYSTEMS

FOOTERS_AT_ONCE = 16
"""Footers that are read at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedFile:
    """One file of the input, as its footer describes it."""

    stored: StoredObject
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A job and the files that it reads."""

    job: Job
    files: tuple[SurveyedFile, ...]

    @property
    def num_rows(self) -> int:
        """The number of rows in the whole input."""
        return sum(file.num_rows for file in self.files)


def make_survey(spec: JobSpec) -> Survey:
    """The survey of everything that a job needs; SpecError for what is missing or does not fit."""
    stores = Stores(spec.errors.storage_deadline_s)
    paths = input_paths(spec, stores)
    _check_output(spec, paths)
    stored = find_files(paths, stores)
    _, schema = read_footer(stores.of(stored[0].uri), stored[0].uri)
    columns = map_columns(schema, spec.input)
    _check_columns(spec, columns, schema)

    def survey_file(file: StoredObject) -> SurveyedFile:
        num_rows, other = read_footer(stores.of(file.uri), file.uri)
        _check_drift(columns, stored[0].uri, schema, file.uri, other)
        return SurveyedFile(stored=file, num_rows=num_rows)

    files = tuple(map_in_flight(survey_file, stored, at_once=FOOTERS_AT_ONCE))
    if not sum(file.num_rows for file in files):
        raise SpecError(f"input.path: no rows in {', '.join(map(str, paths))}")
    build_demo_checkpoints(spec.models.values())
    models = {name: read_card(name, model) for name, model in spec.models.items()}
    check_routes(spec, models)
    job = Job(
        spec=spec,
        models=models,
        columns=columns,
        schema=output_schema(spec, models, columns, schema).serialize().to_pybytes(),
    )
    for name, model in job.checkpoints.items():
        check_weights(name, model, with_checker=spec.safety.checker == "on")
    return Survey(job=job, files=files)


def _check_output(spec: JobSpec, paths: Iterable[InputPath]) -> None:
    """Raise SpecError if the job would read its own parts, which would look like a changed input."""
    output = normalised("output.path", spec.output.path)
    for path in paths:
        if path.includes(join(output, part_file(shard_name(0, 1)))):
            raise SpecError(
                f"output.path: {output} is where input.path looks for rows ({path}), so the job would read "
                "its own parts; choose a folder beside the input"
            )


def _check_columns(spec: JobSpec, columns: ColumnMap, schema: pa.Schema) -> None:
    tasks = {spec.task_of(route) for route in spec.routes}
    if "prompt" not in columns.fields and any(
        "prompt" in system.texts for system in SYSTEMS if system.task in tasks
    ):
        raise SpecError(
            f"the input has no column `prompt`; it has {', '.join(schema.names)}. "
            "Name the one to use with input.columns: {prompt: ...}"
        )
    if "task" not in columns.fields and spec.fallback_route() is None:
        raise SpecError(
            "the input has no column `task` and the spec has no default_route, so no row has a route; "
            f"set default_route to one of {', '.join(spec.routes)}"
        )


def _check_drift(columns: ColumnMap, first: str, schema: pa.Schema, uri: str, other: pa.Schema) -> None:
    """Raise SpecError if the file lacks a column of the first file, or has it with another type."""
    for column in columns.columns():
        if column not in other.names:
            raise SpecError(f"{uri} has no column `{column}`, which {first} has; all files must have it")
        if other.names.count(column) > 1:
            raise SpecError(f"{uri} has several columns named `{column}`; rename all but one")
        first_type, other_type = schema.field(column).type, other.field(column).type
        if first_type != other_type:
            raise SpecError(
                f"column `{column}` is {other_type} in {uri} and {first_type} in {first}; "
                "it must have the same type in all files"
            )
