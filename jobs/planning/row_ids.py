"""Whether every row has an id of its own, over all files of the input: 8 bytes a row, no more."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from actors.inputs.input_file import InputFile
from actors.storage.stores import Stores
from jobs.planning.survey import SurveyedFile
from schemas.columns.input_columns import ColumnMap
from schemas.errors import SpecError

MAX_COMPARED = 10_000_000
"""Rows; beyond, their ids are taken at their word. So many take 80 MB and some seconds."""
MAX_REPEATED = 10_000
"""Rows with an earlier row's id, each of which fails alone; the job's record lists them. With more of them
the column names something else than rows."""

Keys = npt.NDArray[np.int64]
Repeated = Mapping[int, str]
"""By row of a file, where the row is that had its id first."""


def are_compared(columns: ColumnMap, num_rows: int) -> bool:
    """Whether this job's ids are looked at."""
    return "row_id" in columns.fields and num_rows <= MAX_COMPARED


def id_keys(opened: InputFile) -> Keys:
    """For each row of a file a number that equal ids share, and of others hardly any two."""
    found = [_keys(ids) for _, ids in _ids(opened)]
    return np.concatenate([np.empty(0, np.int64), *found])


def find_repeated(
    keys: Sequence[Keys], files: Sequence[SurveyedFile], columns: ColumnMap, stores: Stores
) -> Mapping[str, Repeated]:
    """By file, the rows of it that have an earlier row's id; `keys` are the files', in their order.

    SpecError where they are so many that the column cannot be meant to name rows.
    """
    ordered = np.sort(np.concatenate([np.empty(0, np.int64), *keys]))
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    wanted = np.unique(again)[: MAX_REPEATED + 1]
    first: dict[object, str] = {}
    found: dict[str, dict[int, str]] = {}
    left = MAX_REPEATED
    for uri, row, row_id in _rows_with(wanted, keys, files, columns, stores):
        place = f"row {row} of {uri}"
        if row_id not in first:
            first[row_id] = place
        elif left:
            left -= 1
            found.setdefault(uri, {})[row] = first[row_id]
        else:
            raise SpecError(
                f"{len(again):,} rows have a `{columns.fields['row_id']}` that an earlier row has, {row_id} "
                f"for instance ({first[row_id]} and {place}). A row's outcome is found by its id, so each "
                "needs one of its own; name another column with input.columns: {row_id: ...}, or leave it "
                "unread with {row_id: null} and rows are named after file and number"
            )
    return found


def _rows_with(
    wanted: Keys,
    keys: Sequence[Keys],
    files: Sequence[SurveyedFile],
    columns: ColumnMap,
    stores: Stores,
) -> Iterator[tuple[str, int, object]]:
    """File, number and id of the rows with these keys: a few may share them by chance."""
    for file, mine in zip(files, keys, strict=True):
        if not np.isin(mine, wanted).any():
            continue
        uri = file.stored.uri
        with InputFile(stores.of(uri).open(uri), columns) as opened:
            for first_row, ids in _ids(opened):
                for place in np.flatnonzero(np.isin(_keys(ids), wanted)).tolist():
                    yield uri, first_row + place, ids[place]


def _ids(opened: InputFile) -> Iterator[tuple[int, list[object]]]:
    for batch in opened.read_ids():
        yield batch.first_row, batch.fields["row_id"].to_pylist()


def _keys(ids: Sequence[object]) -> Keys:
    # Not hash() of a number, for which -1 and -2 are one.
    return np.fromiter((row_id if isinstance(row_id, int) else hash(row_id) for row_id in ids), np.int64)
