"""The values of a batch's rows as the checks compare them, and the violations that a check reports."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.inputs.input_file import RowBatch
from actors.rows.routing import ResolvedRoute

RowMask = npt.NDArray[np.bool_]
"""For each row of a batch, whether something is true of it."""
Violation = tuple[RowMask, str, Callable[[int], str]]
"""A rule that rows break: which rows do, the error code, and the message for a row by its position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedValues:
    """The texts that a batch's rows have in one field; the route's text where a row has none."""

    codes: npt.NDArray[np.int64]
    """For each row, the position of its text in `values`."""
    values: list[str | None]
    """The distinct texts; the last one is the route's."""

    def is_own(self, row: int) -> bool:
        """Whether the text comes from the row itself, not from the route."""
        return bool(self.codes[row] < len(self.values) - 1)


def coded_values(batch: RowBatch, route: ResolvedRoute, name: str) -> CodedValues:
    """The texts of the field `name`, by row."""
    default = route.defaults.get(name)
    fallback = None if default is None else str(default)
    column = batch.fields.get(name)
    if column is None:
        return CodedValues(codes=np.zeros(batch.num_rows, dtype=np.int64), values=[fallback])
    encoded = column.dictionary_encode()
    values = [*encoded.dictionary.to_pylist(), fallback]
    codes = encoded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
    return CodedValues(codes=codes.astype(np.int64), values=values)


def effective_values(batch: RowBatch, route: ResolvedRoute, name: str) -> npt.NDArray[np.float64] | None:
    """Each row's number in the field `name`: its own, or the route's.

    A row for which neither has one gets NaN. None: the batch has no such column, and the route no number.
    """
    route_value = route.defaults.get(name)
    default = None if route_value is None or isinstance(route_value, tuple) else float(route_value)
    column = batch.fields.get(name)
    if column is None:
        return None if default is None else np.full(batch.num_rows, default)
    values: npt.NDArray[np.float64] = (
        column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).copy()
    )
    if default is not None:
        values[np.isnan(values)] = default
    return values


def always(message: str) -> Callable[[int], str]:
    """A function that gives the same message for every row."""
    return lambda _: message
