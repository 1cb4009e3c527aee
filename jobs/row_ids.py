"""Whether every row has an id of its own, over all files of the input: 8 bytes a row, no more."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from actors.input_file import InputFile
from jobs.survey import OpenInput, SurveyedFile
from schemas.columns import ColumnMap
from schemas.errors import SpecError

MAX_COMPARED = 10_000_000
"""Rows; beyond, their ids are taken at their word. So many take 80 MB and some seconds."""
MAX_EXAMPLES = 3

Keys = npt.NDArray[np.int64]
_Place = tuple[str, int]
"""A file and a row of it."""


def are_compared(columns: ColumnMap, num_rows: int) -> bool:
    """Whether this job's ids are looked at."""
    return "row_id" in columns.fields and num_rows <= MAX_COMPARED


def id_keys(opened: InputFile) -> Keys:
    """For each row of a file a number that equal ids share, and of others hardly any two."""
    found = [_keys(ids) for _, ids in _ids(opened)]
    return np.concatenate([np.empty(0, np.int64), *found])


def refuse_repeated(
    keys: Sequence[Keys], files: Sequence[SurveyedFile], columns: ColumnMap, open_input: OpenInput
) -> None:
    """SpecError where an id stands twice, with where; `keys` are the files', in their order."""
    ordered = np.sort(np.concatenate([np.empty(0, np.int64), *keys]))
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    wanted = np.unique(repeated)[:MAX_EXAMPLES]
    places: dict[object, list[_Place]] = {}
    for file, mine in zip(files, keys, strict=True):
        if not np.isin(mine, wanted).any():
            continue
        with InputFile(open_input(file.stored.uri).open(file.stored.uri), columns) as opened:
            for first_row, ids in _ids(opened):
                for row in np.flatnonzero(np.isin(_keys(ids), wanted)).tolist():
                    places.setdefault(ids[row], []).append((file.stored.uri, first_row + row))
    # Numbers may be shared by chance, though in ten million rows not once in a hundred thousand jobs.
    twice = {row_id: found for row_id, found in places.items() if len(found) > 1}
    if twice:
        shown = "; ".join(f"{row_id} ({_described(found)})" for row_id, found in twice.items())
        raise SpecError(
            f"{len(repeated):,} rows have a `{columns.fields['row_id']}` that an earlier row has: {shown}. A "
            "row's outcome is found by its id, so each needs one of its own; name another column with "
            "input.columns: {row_id: ...}, or leave it unread with {row_id: null} and rows are named after "
            "file and number"
        )


def _described(found: Sequence[_Place]) -> str:
    (first, row), (second, other) = found[:2]
    return f"row {row} of {first} and row {other}" + ("" if first == second else f" of {second}")


def _ids(opened: InputFile) -> Iterator[tuple[int, list[object]]]:
    for batch in opened.read_ids():
        yield batch.first_row, batch.fields["row_id"].to_pylist()


def _keys(ids: Sequence[object]) -> Keys:
    # Not hash() of a number, for which -1 and -2 are one.
    return np.fromiter((row_id if isinstance(row_id, int) else hash(row_id) for row_id in ids), np.int64)
