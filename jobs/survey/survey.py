"""The survey of a job: its input files and columns, and its checkpoints. Only footers are read, no rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import pyarrow as pa

from actors.checkpoints.adapters.control_net_files import find_control_nets
from actors.checkpoints.adapters.embedding_files import find_embeddings
from actors.checkpoints.adapters.ip_adapter_files import find_ip_adapters
from actors.checkpoints.adapters.lora_check import find_loras
from actors.checkpoints.checkpoint_folders import build_demo_checkpoints
from actors.checkpoints.idle_revisions import refuse_idle_revisions
from actors.checkpoints.model_cards import read_card
from actors.checkpoints.weights_check import check_weights
from actors.inputs.footers import read_footer
from actors.storage.objects import StoredObject
from actors.storage.output import Output
from actors.storage.stores import Stores
from actors.storage.uris import join
from jobs.in_flight import map_in_flight
from jobs.intake.formats import has_header
from jobs.intake.input_stores import InputStores
from jobs.intake.parquet_copies import CopyFolder, ParquetCopy
from jobs.intake.taking_in import EarlierInput, take_in
from jobs.survey.few_steps import few_step_notes
from jobs.survey.input_paths import InputPath, find_files, input_paths, normalised
from jobs.survey.route_checks import check_routes
from schemas.columns.cells import without_lines
from schemas.columns.column_notes import column_notes
from schemas.columns.column_types import needed
from schemas.columns.fields import used_fields
from schemas.columns.folder_columns import folder_array, folder_columns, folder_type
from schemas.columns.input_columns import ColumnMap, map_columns
from schemas.columns.input_schemas import InputSchemas
from schemas.columns.output_columns import output_schema
from schemas.columns.sweep_columns import keeping_sweeps
from schemas.errors import SpecError
from schemas.job import Job
from schemas.output_layout import part_file, shard_name
from schemas.spec.job_spec import JobSpec, ModelSpec
from schemas.systems.model_card import ModelCard
from schemas.systems.system_table import SYSTEMS
from schemas.wording.printable import listed

FOOTERS_AT_ONCE = 16
"""Footers that are read at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedFile:
    """One file of the input, as its footer describes it."""

    stored: StoredObject
    num_rows: int
    copy: ParquetCopy | None = None
    """The Parquet copy that is read; None: the file itself is read."""

    @property
    def rows_uri(self) -> str:
        """The URI of the Parquet file with its rows."""
        return self.copy.uri if self.copy else self.stored.uri


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A job and the files that it reads."""

    job: Job
    files: tuple[SurveyedFile, ...]
    notes: tuple[str, ...] = ()
    """What the user should know about the input's files and columns and about the routes, a line each."""
    copies: CopyFolder | None = None
    """It has the files' copies that are not in the output, as long as the survey lasts."""

    @property
    def num_rows(self) -> int:
        """The number of rows in the whole input."""
        return sum(file.num_rows for file in self.files)


def make_survey(
    spec: JobSpec,
    pins: Mapping[str, ModelSpec] = MappingProxyType({}),
    earlier: EarlierInput | None = None,
) -> Survey:
    """The survey of everything that a job needs; SpecError for what is missing or does not fit.

    `pins`: by name, models at the commits of the Hub that are read, whatever their revisions name by now.
    `earlier`: the input of a job that has begun.
    """
    stores = Stores(spec.errors.storage_deadline_s)
    input_stores = InputStores(stores, spec.errors.storage_deadline_s)
    paths = input_paths(spec.input, input_stores, earlier)
    output = checked_output(spec, paths)
    stored, notes = find_files(paths, input_stores)
    taken_in = take_in(stored, input_stores, earlier, Output(stores.of(output), output))
    files, schemas = read_footers(stored, taken_in.copies, stores)
    if not any(file.num_rows for file in files):
        raise SpecError(f"input.path: no rows in {', '.join(map(str, paths))}")
    as_written, spec = spec, keeping_sweeps(spec, schemas)
    columns = map_columns(schemas, spec.input, used_fields(spec))
    _check_folders(columns, schemas, files)
    _check_columns(spec, columns, schemas, has_headers=any(has_header(file.uri) for file in stored))
    for name, model in spec.models.items():
        refuse_idle_revisions(name, model)
    build_demo_checkpoints(spec.models.values())
    models = {name: read_card(name, pins.get(name, model)) for name, model in spec.models.items()}
    check_routes(spec, models)
    models, lora_notes = _with_adapters(spec, pins, models, stores)
    job = Job(
        spec=spec,
        models=models,
        columns=columns,
        schema=output_schema(spec, models, columns).serialize().to_pybytes(),
    )
    for name, model in job.checkpoints.items():
        check_weights(name, model, with_checker=spec.safety.checker == "on")
    of_routes = few_step_notes(spec, models)
    notes = [*taken_in.notes, *column_notes(schemas, columns, as_written), *notes, *lora_notes, *of_routes]
    return Survey(job=job, files=files, notes=tuple(notes), copies=taken_in.folder)


def _with_adapters(
    spec: JobSpec, pins: Mapping[str, ModelSpec], models: Mapping[str, ModelCard], stores: Stores
) -> tuple[dict[str, ModelCard], list[str]]:
    """(cards, notes): the models' cards with their adapters, and what diffusers leaves out of LoRAs."""
    cards, notes = {}, []
    for name, card in models.items():
        model = pins.get(name, spec.models[name])
        loras, of_model = find_loras(name, model, card, stores)
        cards[name] = replace(
            card,
            loras=loras,
            controlnets=find_control_nets(name, model, card),
            embeddings=find_embeddings(name, model, card, stores),
            ip_adapters=find_ip_adapters(name, model, card, stores),
        )
        notes += of_model
    return cards, notes


def read_footers(
    stored: Sequence[StoredObject], copies: Mapping[str, ParquetCopy], stores: Stores
) -> tuple[tuple[SurveyedFile, ...], InputSchemas]:
    """(files, schemas): each file's number of rows, and the columns of the files that have rows."""

    def footer_of(file: StoredObject) -> tuple[int, pa.Schema]:
        copy = copies.get(file.uri)
        return (
            read_footer(stores.of(copy.uri), copy.uri, file.uri)
            if copy
            else read_footer(stores.of(file.uri), file.uri)
        )

    files, schemas = [], InputSchemas()
    footers = map_in_flight(footer_of, stored, at_once=FOOTERS_AT_ONCE)
    for file, (num_rows, schema) in zip(stored, footers, strict=True):
        files.append(SurveyedFile(stored=file, num_rows=num_rows, copy=copies.get(file.uri)))
        if num_rows:  # Writers make null columns, or none, of no rows.
            schemas.add(file.uri, without_lines(schema))
    return tuple(files), schemas


def _check_folders(columns: ColumnMap, schemas: InputSchemas, files: Iterable[SurveyedFile]) -> None:
    """Raise SpecError if a value in the name of a folder does not fit the field that it fills."""
    fields = {field: column for field, column in columns.fields.items() if column in schemas.folder_types}
    for file in files if fields else ():
        values = folder_columns(file.stored.uri)
        for field, column in fields.items():
            try:
                folder_array(values.get(column), folder_type(field), 1)
            except pa.ArrowInvalid as error:
                raise SpecError(
                    f"the folder `{column}={values[column]}` of {file.stored.uri}: the field `{field}` needs "
                    f"{needed(field)}; rename it, or leave the field unread with input.columns: "
                    f"{{{field}: null}}"
                ) from error


def checked_output(spec: JobSpec, paths: Iterable[InputPath]) -> str:
    """The path of the output; SpecError if the job would read its own parts, as if its input had changed."""
    output = normalised("output.path", spec.output.path)
    for path in paths:
        if path.includes(join(output, part_file(shard_name(0, 1)))):
            raise SpecError(
                f"output.path: {output} is where input.path looks for rows ({path}), so the job would read "
                "its own parts; choose a folder beside the input"
            )
    return output


def _check_columns(spec: JobSpec, columns: ColumnMap, schemas: InputSchemas, *, has_headers: bool) -> None:
    tasks = {spec.task_of(route) for route in spec.routes}
    if "prompt" not in columns.fields and any(
        "prompt" in system.texts for system in SYSTEMS if system.task in tasks
    ):
        is_row = ". If this is a row, put a line with the columns' names before it" if has_headers else ""
        raise SpecError(
            f"the input has no column `prompt`; it has {listed(schemas.names)}. "
            f"Name the one to use with input.columns: {{prompt: ...}}{is_row}"
        )
    if "task" not in columns.fields and spec.fallback_route() is None:
        raise SpecError(
            "the input has no column `task` and the spec has no default_route, so no row has a route; "
            f"set default_route to one of {', '.join(spec.routes)}"
        )
