"""The rows of a sweep: its table multiplied by its axes, in batches of bounded size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.sweeps.axes import Axis, SweptField, set_columns, sweep_axes
from jobs.sweeps.prompt_choices import PromptChoices, RowNames
from jobs.sweeps.sweep_file import SweepFile, load_sweep
from jobs.sweeps.table_rows import Table, TableRows, open_table
from jobs.sweeps.word_lists import WordLists
from schemas.columns.fields import FIELD_KINDS
from schemas.columns.sweep_columns import sweep_column

BATCH_ROWS = 65_536
BATCH_BYTES = 64 << 20
"""The most rows of a batch, and about the most bytes that its columns of the table have."""
TABLE = sweep_column("row")
"""The column that says which row of the table was multiplied."""


class _SweptColumns(NamedTuple):
    """The columns of a swept field, with an entry for each position on its axis."""

    values: pa.Array
    shown: pa.Array
    """The values as the column has them that says which of them a row has."""
    names: pa.Array
    """What ids have of them."""


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """A sweep whose values were checked, and whose table was found."""

    sweep: SweepFile
    lists: WordLists
    axes: Sequence[Axis]
    constants: Mapping[str, pa.Array]
    """The fields that have one value in all rows, each as a column of one row."""
    table: Table | None

    @cached_property
    def swept(self) -> tuple[SweptField, ...]:
        """The fields and lists of words that are multiplied."""
        return tuple(chain.from_iterable(axis.fields for axis in self.axes))

    @property
    def num_combinations(self) -> int:
        """The number of rows for each row of the table."""
        return prod(len(axis) for axis in self.axes)

    @property
    def num_rows(self) -> int:
        """The number of all rows."""
        return self.num_combinations * (self.table.num_rows if self.table else 1)

    @property
    def replaced(self) -> list[str]:
        """The columns of the table whose values are replaced by the sweep's."""
        given = {*self.constants, *(field.name for field in self.swept if not field.is_words)}
        return [name for name in self._table_types if name in given]

    @property
    def _names_table(self) -> bool:
        """Whether a column says which row of the table was multiplied."""
        return bool(self.table and self.axes)

    @property
    def _table_types(self) -> Mapping[str, pa.DataType]:
        return self.table.types if self.table else {}

    @cached_property
    def _swept_columns(self) -> Mapping[str, _SweptColumns]:
        """The columns of each swept field, by its name."""
        return {
            field.name: _SweptColumns(field.column(), field.sweep_column(), field.names())
            for field in self.swept
        }

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns: the id, the fields, the table's other columns, and those that name the values."""
        types = {**self._table_types, **{name: column.type for name, column in self.constants.items()}}
        types |= {
            field.name: self._swept_columns[field.name].values.type
            for field in self.swept
            if not field.is_words
        }
        names = [name for name in FIELD_KINDS if name in types]
        names += [name for name in types if name not in FIELD_KINDS]
        columns = {"row_id": pa.string()} | {name: types[name] for name in names}
        if self._names_table:
            columns[TABLE] = pa.string()
        columns |= {sweep_column(name): each.shown.type for name, each in self._swept_columns.items()}
        return pa.schema([*columns.items()])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows. SpecError for a prompt, or a value of the table, that cannot be used."""
        choices = PromptChoices(self.sweep, self.lists, self.swept)
        alone = TableRows(names=pa.array([""]), columns={}, source_of=lambda i: str(self.sweep.path))
        for rows in self.table.batches() if self.table else [alone]:
            num_rows = len(rows.names) * self.num_combinations
            row_bytes = sum(column.nbytes for column in rows.columns.values()) // len(rows.names)
            step = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))
            for start in range(0, num_rows, step):
                numbers = np.arange(start, min(num_rows, start + step))
                yield self._batch(rows, numbers, choices)
        choices.refuse_idle_words()

    def _batch(
        self, rows: TableRows, numbers: npt.NDArray[np.intp], choices: PromptChoices
    ) -> pa.RecordBatch:
        """The rows of these numbers, of those that a batch of the table becomes."""
        of_table, combinations = np.divmod(numbers, self.num_combinations)
        columns = {name: column.take(of_table) for name, column in rows.columns.items()}
        columns |= {name: column.take(np.zeros_like(numbers)) for name, column in self.constants.items()}
        table_names = rows.names.take(of_table)
        names = [table_names] if self.table else []
        shown = {TABLE: table_names} if self._names_table else {}
        words: dict[str, pa.Array] = {}
        stride = self.num_combinations
        for axis in self.axes:
            stride //= len(axis)
            positions = combinations // stride % len(axis)
            for field in axis.fields:
                values, of_sweep, value_names = (
                    column.take(positions) for column in self._swept_columns[field.name]
                )
                (words if field.is_words else columns)[field.name] = values
                shown[sweep_column(field.name)] = of_sweep
                names.append(value_names)
        choices.choose(
            columns,
            RowNames(
                names=table_names.to_pylist(),
                words={name: column.to_pylist() for name, column in words.items()},
                source_of=lambda i: rows.source_of(of_table[i]),
            ),
        )
        columns |= {"row_id": pc.binary_join_element_wise(*names, "."), **shown}
        return pa.RecordBatch.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)


def read_expansion(path: Path) -> Expansion:
    """The expansion of the sweep in a YAML file. SpecError for what it cannot be made of."""
    sweep = load_sweep(path)
    lists = WordLists(sweep)
    axes = sweep_axes(sweep, lists)
    expansion = Expansion(
        sweep=sweep, lists=lists, axes=axes, constants=set_columns(sweep), table=open_table(sweep)
    )
    PromptChoices(sweep, lists, expansion.swept)
    return expansion
