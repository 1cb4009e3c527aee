"""The rows that a job reads from a file of any format, without a worker."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.inputs.input_file import InputFile
from actors.inputs.values import cells_as_kind
from actors.storage.stores import Stores
from jobs.survey.survey import make_survey
from schemas.errors import RowError
from tests.support.in_process import job_spec
from tests.support.running import Record


def rows_of(path: Path, data: bytes, keep: Sequence[str] = ()) -> list[Record]:
    """The fields and kept columns of all rows of a file with this content."""
    path.write_bytes(data)
    survey = make_survey(
        job_spec(path, path.parent / "out", input={"path": str(path), "keep": [*keep]}),
    )
    (file,) = survey.files
    rows: list[Record] = []
    with InputFile(Stores().of(file.rows_uri).open(file.rows_uri), survey.job.columns, str(path)) as opened:
        for batch in opened.read_rows(0):
            assert not batch.problems
            columns = {name: column.to_pylist() for name, column in {**batch.fields, **batch.keep}.items()}
            rows += [
                dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
            ]
    assert len(rows) == survey.num_rows
    return rows


def read_cells(field: str, cells: Sequence[str]) -> tuple[list[Any], Mapping[int, RowError]]:
    """(values, problems) of a field whose column has these cells."""
    values, problems = cells_as_kind(pa.array(cells, pa.string()), field)
    return values.to_pylist(), problems
