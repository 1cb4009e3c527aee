"""The search for row ids that occur more than once in the input. It takes only 8 bytes of memory per row."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from actors.inputs.input_file import InputFile
from actors.storage.stores import Stores
from jobs.planning.survey import SurveyedFile
from schemas.columns.input_columns import ColumnMap
from schemas.errors import SpecError

MAX_COMPARED = 10_000_000
"""The most rows whose ids are compared. They take 80 MB and some seconds.

The ids of a larger input are not compared.
"""
MAX_REPEATED = 10_000
"""The most rows that may have an earlier row's id. Each fails alone, and the job's record lists them.

If there are more, the column does not identify rows, and the job is refused.
"""

Keys = npt.NDArray[np.int64]
Repeated = Mapping[int, str]
"""Rows of a file that have an earlier row's id, by row number, each with the place of the earlier row."""


def are_compared(columns: ColumnMap, num_rows: int) -> bool:
    """Whether the ids of this job's rows are compared."""
    return "row_id" in columns.fields and num_rows <= MAX_COMPARED


def id_keys(opened: InputFile) -> Keys:
    """A number for each row of a file: equal ids have the same number, and different ids rarely do."""
    keys = [_keys(ids) for _, ids in _ids(opened)]
    return np.concatenate([np.empty(0, np.int64), *keys])


def find_repeated(
    keys: Sequence[Keys], files: Sequence[SurveyedFile], columns: ColumnMap, stores: Stores
) -> Mapping[str, Repeated]:
    """The rows that have an earlier row's id, by the URI of their file.

    `keys`: for each file, in order, the numbers that `id_keys` gave. SpecError where there are more such rows
    than MAX_REPEATED.
    """
    ordered = np.sort(np.concatenate([np.empty(0, np.int64), *keys]))
    repetitions = ordered[1:][ordered[1:] == ordered[:-1]]
    repeated_keys = np.unique(repetitions)[: MAX_REPEATED + 1]
    first_rows: dict[object, str] = {}
    repeated: dict[str, dict[int, str]] = {}
    num_left = MAX_REPEATED
    for uri, row, row_id in _rows_with(repeated_keys, keys, files, columns, stores):
        location = f"row {row} of {uri}"
        if row_id not in first_rows:
            first_rows[row_id] = location
        elif num_left:
            num_left -= 1
            repeated.setdefault(uri, {})[row] = first_rows[row_id]
        else:
            raise SpecError(
                f"{len(repetitions):,} rows have a `{columns.fields['row_id']}` that an earlier row has, "
                f"{row_id} for instance ({first_rows[row_id]} and {location}). A row's outcome is found by "
                "its id, so each row needs its own; name another column with input.columns: {row_id: ...}, "
                "or ignore the ids with {row_id: null}: rows are then named after their file and number"
            )
    return repeated


def _rows_with(
    searched_keys: Keys,
    keys: Sequence[Keys],
    files: Sequence[SurveyedFile],
    columns: ColumnMap,
    stores: Stores,
) -> Iterator[tuple[str, int, object]]:
    """(URI, row number, id) of each row with one of these keys. Different ids may have one key by chance."""
    for file, file_keys in zip(files, keys, strict=True):
        if not np.isin(file_keys, searched_keys).any():
            continue
        uri = file.stored.uri
        with InputFile(stores.of(uri).open(uri), columns, uri) as opened:
            for first_row, ids in _ids(opened):
                for position in np.flatnonzero(np.isin(_keys(ids), searched_keys)).tolist():
                    yield uri, first_row + position, ids[position]


def _ids(opened: InputFile) -> Iterator[tuple[int, list[object]]]:
    for batch in opened.read_ids():
        yield batch.first_row, batch.fields["row_id"].to_pylist()


def _keys(ids: Sequence[object]) -> Keys:
    # A number is its own key, because hash() is equal for -1 and -2.
    return np.fromiter((row_id if isinstance(row_id, int) else hash(row_id) for row_id in ids), np.int64)
