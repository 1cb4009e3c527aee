"""The reader of shards: it turns a shard, which is a range of row numbers, back into its rows."""

from collections.abc import Callable, Iterator
from threading import Lock

import numpy as np

from actors.images.image_uris import UriJudge
from actors.images.spool import Spool
from actors.inputs.forward_reading import ForwardReading
from actors.inputs.input_file import InputFile, RowBatch
from actors.rows.checks import check_batch
from actors.rows.kept_columns import KeptCapacity, kept_bytes
from actors.rows.routed_rows import RoutedRows, RowNumbers
from actors.rows.routing import Router
from actors.rows.row import Row, build_rows
from actors.storage.stores import Stores
from schemas.errors import RefusedError
from schemas.job import Job, Shard


class ShardReader:
    """Reads shards, forward through a file where possible: a shard mostly begins where the last one ended.

    Several threads may call it; they read one after the other.
    """

    def __init__(self, job: Job, stores: Stores, beat: Callable[[], None] = lambda: None) -> None:
        """`beat` is called for each batch of rows that was read."""
        self._job = job
        self._stores = stores
        self._beat = beat
        self._router = Router(job.spec, job.models)
        self._cursor: _Cursor | None = None
        self._lock = Lock()

    def read(self, shard: Shard, spool: Spool) -> list[Row]:
        """Every row of the shard, in the file's order, with its problem if it has one.

        The rows' images go into the `spool`.
        """
        with self._lock:
            return self._read(shard, spool)

    def _read(self, shard: Shard, spool: Spool) -> list[Row]:
        try:
            return self._rows(shard, spool)
        finally:
            # This is needed where reading failed, and even more where it did not: if a file is cut off while
            # it is read, its rest looks like damaged pages.
            self._refuse_changed(shard)

    def _refuse_changed(self, shard: Shard) -> None:
        storage = self._stores.of(shard.rows_uri)
        stored = storage.stat(shard.rows_uri)
        if shard.copy:  # Its name has the hash of its content, and its source may be out of a worker's reach.
            if stored is None:
                raise missing_copy_error(shard.copy)
            return
        if stored is None or stored.etag != shard.etag:
            raise changed_input_error(shard.uri)
        # The file is read whole for this once on a machine, unless its times change.
        if shard.sha256 and storage.content_hash(shard.uri, self._beat) != shard.sha256:
            raise changed_input_error(shard.uri)

    def _rows(self, shard: Shard, spool: Spool) -> list[Row]:
        cursor = self._cursor_for(shard)
        row_numbers = cursor.rows_of(shard)
        if len(row_numbers) != shard.num_rows:
            raise changed_input_error(shard.uri)
        rows: list[Row] = []
        capacity = KeptCapacity()
        for batch, positions in cursor.batches(row_numbers):
            checked_batch = check_batch(batch, self._router, self._job.models, cursor.judge)
            batch_rows = build_rows(
                checked_batch,
                positions,
                file_name=shard.file_name,
                first_index=len(rows),
                job_seed=self._job.spec.seed,
                spool=spool,
            )
            rows += [*capacity.fit(batch_rows, kept_bytes(batch, positions))]
        return rows

    def close(self) -> None:
        """Close the input file that is open, if any."""
        if self._cursor:
            self._cursor.close()
            self._cursor = None

    def _cursor_for(self, shard: Shard) -> "_Cursor":
        if self._cursor is None or self._cursor.uri != shard.uri:
            self.close()
            self._refuse_changed(shard)
            source = self._stores.of(shard.rows_uri).open(shard.rows_uri)
            file = InputFile(source, self._job.columns, shard.uri, self._beat)
            judge = UriJudge(shard.uri, self._job.spec.input.pictures)
            self._cursor = _Cursor(shard.uri, file, self._router, judge)
        return self._cursor


def changed_input_error(uri: str) -> RefusedError:
    """The error of an input file that is not as it was when the job was planned."""
    return RefusedError(
        f"{uri} changed after this job was planned; a job's input must stay as it is until the job is done. "
        "Put it back, or start a job with an output of its own"
    )


def missing_copy_error(uri: str) -> RefusedError:
    """The error of a copy in the output that is no longer there."""
    return RefusedError(
        f"{uri}, the copy of an input file, was deleted after this job was planned. Put it back, or start a "
        "job with an output of its own"
    )


class _Cursor:
    """An open input file, the model that each of its rows goes to, and the rows that were read last."""

    def __init__(self, uri: str, file: InputFile, router: Router, judge: UriJudge) -> None:
        self.uri = uri
        self.judge = judge
        """Knows which URIs the file's rows may read."""
        self._file = file
        self._routed = RoutedRows(file, router)
        self._reading = ForwardReading(file, file.decode_rows)

    def close(self) -> None:
        self._file.close()

    def rows_of(self, shard: Shard) -> RowNumbers:
        """The ascending numbers of the shard's rows in the file."""
        return self._routed.numbers(shard.model, shard.start, shard.stop)

    def batches(self, row_numbers: RowNumbers) -> Iterator[tuple[RowBatch, list[int]]]:
        """The batches with these rows of the file, each with the positions of the rows in the batch."""
        done = 0
        while done < len(row_numbers):
            row = int(row_numbers[done])
            batch = self._reading.rows_with(row).batch_from(row)
            end = int(np.searchsorted(row_numbers, batch.first_row + batch.num_rows))
            yield batch, (row_numbers[done:end] - batch.first_row).tolist()
            done = end
