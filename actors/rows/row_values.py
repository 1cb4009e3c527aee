"""Values of a batch's rows as the checks compare them, and what a check finds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.inputs.input_file import RowBatch
from actors.rows.routing import ResolvedRoute

Mask = npt.NDArray[np.bool_]
Finding = tuple[Mask, str, Callable[[int], str]]
"""Rows that break a rule, the error code, and what to say of one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A field's values over a batch, or else the route's."""

    codes: npt.NDArray[np.int64]
    """For each row a position in `values`."""
    values: list[str | None]
    """The route's last."""

    def is_own(self, row: int) -> bool:
        """Whether it is the row's."""
        return bool(self.codes[row] < len(self.values) - 1)


def coded(batch: RowBatch, route: ResolvedRoute, name: str) -> Coded:
    default = route.defaults.get(name)
    fallback = None if default is None else str(default)
    column = batch.fields.get(name)
    if column is None:
        return Coded(codes=np.zeros(batch.num_rows, dtype=np.int64), values=[fallback])
    encoded = column.dictionary_encode()
    values = [*encoded.dictionary.to_pylist(), fallback]
    codes = encoded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
    return Coded(codes=codes.astype(np.int64), values=values)


def effective(batch: RowBatch, route: ResolvedRoute, name: str) -> npt.NDArray[np.float64] | None:
    """The row's value, or else the route's; None where the checkpoint decides for all rows."""
    given = route.defaults.get(name)
    default = None if given is None or isinstance(given, tuple) else float(given)
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
    return lambda _: message
