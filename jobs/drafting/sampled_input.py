"""What a spec can be drafted from: the files of an input, their columns, and some of their first rows."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from actors.storage.output import Output
from actors.storage.stores import Stores
from jobs.intake.input_stores import InputStores
from jobs.intake.taking_in import take_in
from jobs.survey.input_paths import find_files, input_paths
from jobs.survey.survey import SurveyedFile, checked_output, read_footers
from schemas.columns.cells import is_cell
from schemas.columns.folder_columns import folder_columns
from schemas.columns.input_schemas import InputSchemas
from schemas.columns.parquet_errors import parquet_errors_as
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec

SAMPLE_ROWS = 1_000
"""The rows of the first file whose values are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledInput:
    """An input, as far as its footers and its first rows tell."""

    schemas: InputSchemas
    num_rows: int
    num_files: int
    first_rows: pa.RecordBatch
    """Rows of the first file that has any."""
    first_uri: str
    """That file."""
    notes: tuple[str, ...]
    """What the user should know about the input's files, a line each."""

    def values(self, column: str) -> list[str]:
        """The different texts that the first rows have in a column, without nulls and empty ones."""
        if column not in self.first_rows.schema.names:
            value = folder_columns(self.first_uri).get(column)
            return [value] if value else []
        array = self.first_rows.column(column)
        texts = array.storage if is_cell(array.type) else array
        kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary)
        if not any(kind(texts.type) for kind in kinds):
            return []
        return [str(text) for text in texts.unique().to_pylist() if text]

    @property
    def single_values(self) -> list[str]:
        """The columns that all files have and whose values are single ones, such as texts and numbers."""
        return [name for name in self.schemas.names if self._is_single(name)]

    def _is_single(self, column: str) -> bool:
        try:
            self.schemas.require(column)
            kind = self.schemas.kept_type(column)
        except SpecError:
            return False
        return not _is_large(kind)


def _is_large(arrow_type: pa.DataType) -> bool:
    """Whether values of this type may be images, or have parts."""
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return pa.types.is_nested(arrow_type) or any(check(arrow_type) for check in binary)


def sample_input(spec: JobSpec) -> SampledInput:
    """What can be told of the spec's input; SpecError where it cannot be read, or has no rows."""
    stores = Stores(spec.errors.storage_deadline_s)
    input_stores = InputStores(stores, spec.errors.storage_deadline_s)
    paths = input_paths(spec.input, input_stores)
    output = checked_output(spec, paths)
    stored, notes = find_files(paths, input_stores)
    taken_in = take_in(stored, input_stores, None, Output(stores.of(output), output))
    files, schemas = read_footers(stored, taken_in.copies, stores)
    first = next((file for file in files if file.num_rows), None)
    if first is None:
        raise SpecError(f"{', '.join(map(str, paths))} has no rows")
    return SampledInput(
        schemas=schemas,
        num_rows=sum(file.num_rows for file in files),
        num_files=len(files),
        first_rows=_first_rows(first, stores),
        first_uri=first.stored.uri,
        notes=tuple(notes),
    )


def _first_rows(file: SurveyedFile, stores: Stores) -> pa.RecordBatch:
    with (
        parquet_errors_as(SpecError, f"{file.stored.uri} cannot be read"),
        stores.of(file.rows_uri).open(file.rows_uri) as source,
        pq.ParquetFile(source) as parquet,
    ):
        # A batch of images would fill the memory, and no sample of them is looked at.
        texts = [field.name for field in parquet.schema_arrow if not _is_large(field.type)]
        return next(parquet.iter_batches(batch_size=SAMPLE_ROWS, columns=texts))
