"""A shard's few numbers back into its rows."""

from collections.abc import Iterator
from threading import Lock

import numpy as np
import numpy.typing as npt

from actors.images.spool import Spool
from actors.inputs.input_file import InputFile, RowBatch
from actors.rows.checks import check_batch
from actors.rows.kept_columns import KeptRoom, kept_bytes
from actors.rows.routing import Router
from actors.rows.row import Row, build_rows
from actors.storage.stores import Stores
from schemas.errors import RefusedError
from schemas.job import Job, Shard

Positions = npt.NDArray[np.int64]


class ShardReader:
    """Reads shards, forward through a file where it can: the next shard mostly begins where one ended.

    Safe to call from several threads, which read one after the other.
    """

    def __init__(self, job: Job, stores: Stores) -> None:
        self._job = job
        self._stores = stores
        self._router = Router(job.spec, job.models)
        self._cursor: _Cursor | None = None
        self._lock = Lock()

    def read(self, shard: Shard, spool: Spool) -> list[Row]:
        """Every row of the shard, in the file's order, with its problem if it has one.

        `spool`: what holds their pictures.
        """
        with self._lock:
            return self._read(shard, spool)

    def _read(self, shard: Shard, spool: Spool) -> list[Row]:
        try:
            return self._rows(shard, spool)
        finally:
            # Also where reading failed, and above all where it did not: of a file that is cut meanwhile the
            # rest looks like damaged pages.
            self._refuse_changed(shard)

    def _refuse_changed(self, shard: Shard) -> None:
        stored = self._stores.of(shard.uri).stat(shard.uri)
        if stored is None or stored.etag != shard.etag:
            raise changed(shard.uri)

    def _rows(self, shard: Shard, spool: Spool) -> list[Row]:
        cursor = self._cursor_for(shard)
        positions = cursor.rows_of(shard.model)[shard.start : shard.stop]
        if len(positions) != shard.num_rows:
            raise changed(shard.uri)
        rows: list[Row] = []
        room = KeptRoom()
        for batch, wanted in cursor.batches(positions):
            checked = check_batch(batch, self._router, self._job.models)
            found = build_rows(
                checked,
                wanted,
                file_name=shard.file_name,
                first_index=len(rows),
                job_seed=self._job.spec.seed,
                spool=spool,
            )
            rows += [*room.fit(found, kept_bytes(batch, wanted))]
        return rows

    def close(self) -> None:
        """Give the open file back."""
        if self._cursor:
            self._cursor.close()
            self._cursor = None

    def _cursor_for(self, shard: Shard) -> "_Cursor":
        if self._cursor is None or self._cursor.uri != shard.uri:
            self.close()
            self._refuse_changed(shard)
            file = InputFile(self._stores.of(shard.uri).open(shard.uri), self._job.columns)
            self._cursor = _Cursor(shard.uri, file, self._router)
        return self._cursor


def changed(uri: str) -> RefusedError:
    """The input is not what was planned."""
    return RefusedError(
        f"{uri} changed after this job was planned; a job's input must stay as it is until the job is done. "
        "Put it back, or start a job with an output of its own"
    )


class _Cursor:
    """One open file, the model that each of its rows goes to, and the place where reading stopped."""

    def __init__(self, uri: str, file: InputFile, router: Router) -> None:
        self.uri = uri
        self._file = file
        self._rows_by_model = _rows_by_model(file, router)
        self._reading: Iterator[RowBatch] = iter(())
        self._batch: RowBatch | None = None

    def close(self) -> None:
        self._file.close()

    def rows_of(self, model: str) -> Positions:
        """Row numbers of the file that go to a model, ascending."""
        return self._rows_by_model.get(model, np.empty(0, dtype=np.int64))

    def batches(self, positions: Positions) -> Iterator[tuple[RowBatch, list[int]]]:
        """The batches that hold these rows of the file, and where in the batch they are."""
        done = 0
        while done < len(positions):
            batch = self._seek(int(positions[done]))
            last = int(np.searchsorted(positions, batch.first_row + batch.num_rows))
            yield batch, (positions[done:last] - batch.first_row).tolist()
            done = last

    def _seek(self, row: int) -> RowBatch:
        """The batch that holds a row: read on from here, unless the row is behind or a row group ahead."""
        at = self._batch
        if (
            at is None
            or row < at.first_row
            or self._file.row_group_of(row) > self._file.row_group_of(at.first_row + at.num_rows)
        ):
            self._reading = self._file.read_rows(row)
            at = next(self._reading)
        while row >= at.first_row + at.num_rows:
            at = next(self._reading)
        self._batch = at
        return at


def _rows_by_model(file: InputFile, router: Router) -> dict[str, Positions]:
    rows: dict[str, list[Positions]] = {}
    for batch in file.read_routing():
        positions, routes = router.resolve_batch(
            batch.fields.get("task"), batch.fields.get("model"), batch.num_rows
        )
        for model in {route.model for route in routes}:
            to_model = np.isin(positions, [i for i, route in enumerate(routes) if route.model == model])
            rows.setdefault(model, []).append(np.flatnonzero(to_model) + batch.first_row)
    return {model: np.concatenate(parts) for model, parts in rows.items()}
