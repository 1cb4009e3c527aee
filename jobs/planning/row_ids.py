"""The search for row ids that occur more than once in the input, by a number of 8 bytes for each row."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from actors.inputs.input_file import InputFile
from actors.storage.stores import Stores
from jobs.planning.row_keys import Keys, RowKeys
from jobs.survey.survey import SurveyedFile
from schemas.columns.input_columns import ColumnMap
from schemas.errors import SpecError

MAX_REPEATED = 10_000
"""The most rows that may have an earlier row's id. Each fails alone, and the job's record lists them.

If there are more, the column does not identify rows, and the job is refused.
"""

Repeated = Mapping[int, str]
"""Rows of a file that have an earlier row's id, by row number, each with the place of the earlier row."""


def id_keys(opened: InputFile) -> Iterator[Keys]:
    """A number for each row of a file, in batches: equal ids have the same, and different ids rarely do."""
    return (_keys(ids) for _, ids in _ids(opened))


def find_repeated(
    row_keys: RowKeys, files: Sequence[SurveyedFile], columns: ColumnMap, stores: Stores
) -> Mapping[str, Repeated]:
    """The rows that have an earlier row's id, by the URI of their file.

    `row_keys`: the numbers that `id_keys` gave. SpecError where there are more such rows than MAX_REPEATED.
    """
    repeated_keys, num_repetitions = row_keys.repeated(MAX_REPEATED + 1)
    if not num_repetitions:
        return {}
    first_rows: dict[object, str] = {}
    repeated: dict[str, dict[int, str]] = {}
    num_left = MAX_REPEATED
    for uri, row, in_file, row_id in _rows_with(repeated_keys, files, columns, stores):
        location = f"{in_file} of {uri}"
        if row_id not in first_rows:
            first_rows[row_id] = location
        elif num_left:
            num_left -= 1
            repeated.setdefault(uri, {})[row] = first_rows[row_id]
        else:
            raise SpecError(
                f"{num_repetitions:,} rows have a `{columns.fields['row_id']}` that an earlier row has, "
                f"{row_id} for instance ({first_rows[row_id]} and {location}). A row's outcome is found by "
                "its id, so each row needs its own; name another column with input.columns: {row_id: ...}, "
                "or ignore the ids with {row_id: null}: rows are then named after their file and number"
            )
    return repeated


def _rows_with(
    searched_keys: Keys, files: Sequence[SurveyedFile], columns: ColumnMap, stores: Stores
) -> Iterator[tuple[str, int, str, object]]:
    """(URI, row number, location for a message, id) of each row with one of these keys.

    Different ids may have one key by chance.
    """
    for file in files:
        uri = file.stored.uri
        with InputFile(stores.of(file.rows_uri).open(file.rows_uri), columns, uri) as opened:
            for first_row, ids in _ids(opened):
                rows = (first_row + np.flatnonzero(np.isin(_keys(ids), searched_keys))).tolist()
                for row, location in zip(rows, opened.locations(rows), strict=True):
                    yield uri, row, location, ids[row - first_row]


def _ids(opened: InputFile) -> Iterator[tuple[int, list[object]]]:
    for batch in opened.read_ids():
        yield batch.first_row, batch.fields["row_id"].to_pylist()


def _keys(ids: Sequence[object]) -> Keys:
    # A number is its own key, because hash() is equal for -1 and -2.
    return np.fromiter((row_id if isinstance(row_id, int) else hash(row_id) for row_id in ids), np.int64)
