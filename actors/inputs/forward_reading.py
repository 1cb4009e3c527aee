"""One place in a file, from which reading goes on forward where that is possible."""

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from actors.inputs.input_file import InputFile


class _Rows(Protocol):
    """Neighbouring rows of a file."""

    @property
    def first_row(self) -> int: ...
    @property
    def num_rows(self) -> int: ...


Rows = TypeVar("Rows", bound=_Rows)


class ForwardReading(Generic[Rows]):
    """Finds rows of a file by their numbers; cheap where the numbers ascend."""

    def __init__(self, file: InputFile, read: Callable[[int], Iterator[Rows]]) -> None:
        """`read` has the file's rows from the start of a row's row group to the file's end."""
        self._file = file
        self._read = read
        self._rest: Iterator[Rows] = iter(())
        self._latest: Rows | None = None

    def rows_with(self, row: int) -> Rows:
        """The rows that were read together with this one.

        Reading continues after the latest ones, unless the row is before them or in a later row group.
        """
        # Nothing can be read on where reading fails.
        rows, self._latest = self._latest, None
        if (
            rows is None
            or row < rows.first_row
            or self._file.row_group_of(row) > self._file.row_group_of(rows.first_row + rows.num_rows)
        ):
            self._rest = self._read(row)
            rows = next(self._rest)
        while row >= rows.first_row + rows.num_rows:
            rows = next(self._rest)
        self._latest = rows
        return rows
