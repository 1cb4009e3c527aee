"""Which rows of a file go to which model, known from a few numbers for each block of rows."""

import numpy as np
import numpy.typing as npt

from actors.inputs.forward_reading import ForwardReading
from actors.inputs.input_file import InputFile, RowBatch
from actors.rows.routing import Router

RowNumbers = npt.NDArray[np.int64]


class RoutedRows:
    """The rows of a file by model.

    Only counts are kept, of each block of some thousand rows. Where the rows of a block go to several models,
    the columns that route them are read again when they are needed.
    """

    def __init__(self, file: InputFile, router: Router) -> None:
        self._router = router
        self._reading = ForwardReading(file, lambda row: file.read_routing(first_row=row))
        firsts, counts = [], []
        for batch in file.read_routing():
            firsts.append(batch.first_row)
            counts.append({model: len(rows) for model, rows in self._by_model(batch).items()})
        self._bounds = [*firsts, file.metadata.num_rows]
        """The first row of each block, and the row after the last one."""
        self._before = {
            model: np.cumsum([0, *(count.get(model, 0) for count in counts)])
            for model in set().union(*counts)
        }
        """By model: the number of its rows before each block, and in the whole file."""

    def numbers(self, model: str, start: int, stop: int) -> RowNumbers:
        """The ascending numbers of a model's rows, from its row `start` up to, and without, `stop`.

        Rows are numbered in the file, and `start` and `stop` count the rows of the model. There are fewer
        numbers if the model has fewer rows.
        """
        before = self._before.get(model, np.zeros(1, np.int64))
        blocks = range(
            max(0, int(np.searchsorted(before, start, side="right")) - 1), int(np.searchsorted(before, stop))
        )
        parts = [
            self._numbers_in(block, model)[max(0, start - before[block]) : stop - before[block]]
            for block in blocks
            if block < len(before) - 1
        ]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _numbers_in(self, block: int, model: str) -> RowNumbers:
        row, end = self._bounds[block : block + 2]
        before, up_to_end = self._before[model][block : block + 2]
        if up_to_end - before == end - row:
            return np.arange(row, end)
        parts = []
        while row < end:
            batch = self._reading.rows_with(row)
            numbers = self._by_model(batch).get(model, np.empty(0, np.int64))
            parts.append(numbers[(numbers >= row) & (numbers < end)])
            row = batch.first_row + batch.num_rows
        return np.concatenate(parts)

    def _by_model(self, batch: RowBatch) -> dict[str, RowNumbers]:
        """The numbers of a batch's rows in the file, by model."""
        positions, routes = self._router.resolve_batch(
            batch.fields.get("task"), batch.fields.get("model"), batch.num_rows
        )
        rows: dict[str, RowNumbers] = {}
        for model in {route.model for route in routes}:
            to_model = np.isin(positions, [i for i, route in enumerate(routes) if route.model == model])
            rows[model] = np.flatnonzero(to_model) + batch.first_row
        return rows
