"""The rows of the table that a sweep multiplies: any input that darkroom takes."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from actors.inputs.input_file import CONVERTED_ROWS, InputFile, RowBatch
from actors.storage.stores import Stores
from jobs.intake.input_stores import InputStores
from jobs.intake.parquet_copies import CopyFolder
from jobs.intake.taking_in import take_in
from jobs.survey.input_paths import find_files, input_paths
from jobs.survey.survey import SurveyedFile, read_footers
from jobs.sweeps.field_values import table_type
from jobs.sweeps.sweep_file import SweepFile
from jobs.sweeps.value_names import shortened_slug
from schemas.columns.fields import FIELD_KINDS, IMAGE_FIELDS
from schemas.columns.input_columns import ColumnMap, map_columns
from schemas.errors import SpecError
from schemas.spec.job_spec import InputSpec

BATCH_ROWS = 1024
"""The most rows that are in memory together, if they have no images."""
DEADLINE_S = 120.0
"""How long requests for the table's files are repeated."""
MAX_PROMPT_NAME = 24
"""The most characters of a prompt in the name of a row that has no id."""
_KEY = re.compile(r"\binput\.(?=path|columns)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows:
    """Neighbouring rows of the table."""

    names: pa.Array
    """The rows' ids; for rows without one, the first words of their prompts, and their numbers."""
    columns: Mapping[str, pa.Array]
    """Their fields but `row_id`, by darkroom's names, and all other columns."""
    source_of: Callable[[int], str]
    """Where a row is, for messages, by its position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that was found, and whose footers were read."""

    files: tuple[SurveyedFile, ...]
    columns: ColumnMap
    types: Mapping[str, pa.DataType]
    """The type of each column that `TableRows` has."""
    stores: Stores
    copies: CopyFolder | None
    """It has the Parquet copies of the files, as long as somebody refers to it."""

    @property
    def num_rows(self) -> int:
        """The number of the table's rows."""
        return sum(file.num_rows for file in self.files)

    def batches(self) -> Iterator[TableRows]:
        """All rows, in batches. SpecError for a value that cannot be used, with its row."""
        number = 0
        pictures = any(field in IMAGE_FIELDS for field in self.columns.fields)
        for file in self.files:
            uri = file.rows_uri
            with InputFile(self.stores.of(uri).open(uri), self.columns, file.stored.uri) as opened:
                for batch in opened.read_rows(0, CONVERTED_ROWS if pictures else BATCH_ROWS):
                    yield self._rows(batch, file.stored.uri, number)
                    number += batch.num_rows

    def _rows(self, batch: RowBatch, uri: str, number: int) -> TableRows:
        """The rows of a batch, the first of which has this number in the table."""

        def source_of(i: int) -> str:
            return f"row {batch.first_row + i} of {uri}"

        for i, problem in sorted(batch.problems.items()):
            raise SpecError(f"{source_of(i)}: {problem.message}")
        arrays = {**batch.keep, **batch.fields}
        columns = {name: _cast(arrays[name], kind, name, uri) for name, kind in self.types.items()}
        return TableRows(names=_names(batch, number), columns=columns, source_of=source_of)


def open_table(sweep: SweepFile) -> Table | None:
    """The table of a sweep, or None if it has none. SpecError where it cannot be read."""
    if sweep.spec.rows is None:
        return None
    stores = Stores(DEADLINE_S)
    input_stores = InputStores(stores, DEADLINE_S)
    spec = InputSpec(path=sweep.spec.rows.path, columns=sweep.spec.rows.columns)
    try:
        stored, _ = find_files(input_paths(spec, input_stores), input_stores)
        taken_in = take_in(stored, input_stores, earlier=None, output=None)
        files, schemas = read_footers(stored, taken_in.copies, stores)
        read = map_columns(schemas, spec)
        # A column that would be read as a field, although rows.columns leaves it unread, stays behind.
        others = [name for name in schemas.names if name not in {*read.columns(), *FIELD_KINDS}]
        columns = map_columns(schemas, spec.model_copy(update={"keep": others}))
    except SpecError as error:
        # The table's keys are those of a spec's input, under another name.
        raise SpecError(f"{sweep.source('rows')}: {_KEY.sub('rows.', str(error))}") from error
    types = {field: table_type(field) for field in columns.fields if field != "row_id"}
    return Table(
        files=files, columns=columns, types={**types, **columns.keep}, stores=stores, copies=taken_in.folder
    )


def _names(batch: RowBatch, number: int) -> pa.Array:
    ids = batch.fields["row_id"].to_pylist() if "row_id" in batch.fields else [None] * batch.num_rows
    prompts = batch.fields["prompt"].to_pylist() if "prompt" in batch.fields else [None] * batch.num_rows
    return pa.array(
        str(row_id)
        if row_id is not None
        else f"{shortened_slug(prompt or '', MAX_PROMPT_NAME) or 'row'}-{number + i}"
        for i, (row_id, prompt) in enumerate(zip(ids, prompts, strict=True))
    )


def _cast(array: pa.Array, arrow_type: pa.DataType, name: str, uri: str) -> pa.Array:
    try:
        return array.cast(arrow_type)
    except pa.ArrowInvalid as error:
        raise SpecError(f"{uri}: column `{name}`: {error}; {arrow_type} is needed") from error
