"""Large objects on S3: written in pieces under the same conditions as small ones, and read by ranges."""

import io
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import actors.storage.pieces
import actors.storage.s3
from actors.parts.commit import commit_part, takes_pieces
from actors.storage.objects import Storage, StoredObject
from actors.storage.output import Output
from actors.storage.pieces import DROP_WITHIN_S, one_wins
from actors.storage.s3 import MAX_UPLOADS, S3Storage
from actors.storage.s3_errors import PreconditionError
from actors.storage.stores import open_storage
from actors.storage.uris import join
from jobs.output.capacity import for_store, refuse_large_parts
from jobs.planning.plan import LargestPart
from schemas.errors import SpecError, StorageError
from tests.storage.test_commit import IDENTITY, part, row_of
from tests.support.in_process import job_spec, plan_for, write_rows
from tests.support.running import wait_until
from tests.support.s3.fault_proxy import FaultKind, FaultProxy
from tests.support.s3.quick_waits import QuickWaits

PIECE_BYTES = 5 << 20
"""The smallest that stores take."""
LARGE = os.urandom(2 * PIECE_BYTES + 100)
"""Three pieces."""
COMPLETION = "?uploadId="
"""In the path of the request that completes an upload."""


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large is a few megabytes, and a store has two trials: bad ones fail in the first here."""
    monkeypatch.setattr(actors.storage.pieces, "NUM_TRIALS", 2)
    monkeypatch.setattr(actors.storage.pieces, "PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(actors.storage.s3, "IN_PIECES_FROM_BYTES", PIECE_BYTES)


@pytest.fixture
def uri(s3_folder: str) -> str:
    """An object that does not exist yet."""
    return join(s3_folder, "data", "part.parquet")


@pytest.fixture
def large(s3_faults: FaultProxy, s3_folder: str) -> S3Storage:
    """A storage behind the fault proxy, and an orderly store, that writes large objects in pieces."""
    s3_faults.orderly = True
    return S3Storage(timeout_s=5, deadline_s=30, in_pieces=True)


def uploads(s3_folder: str) -> list[str]:
    """The keys of the unfinished uploads below a folder."""
    bucket, _, key = s3_folder.removeprefix("s3://").partition("/")
    storage = S3Storage(timeout_s=30, deadline_s=30)
    page = storage._call("list_multipart_uploads", s3_folder, {"Bucket": bucket, "Prefix": key})
    return [upload["Key"] for upload in page.get("Uploads", [])]


def large_part(row: int) -> bytes:
    """A part of three pieces."""
    table = pq.read_table(io.BytesIO(part(row=row)))
    sink = io.BytesIO()
    pq.write_table(table.append_column("image", [[LARGE]]), sink, compression="none")
    return sink.getvalue()


def test_a_large_object_is_written_in_pieces(
    s3_faults: FaultProxy, large: Storage, s3_folder: str, uri: str
) -> None:
    """It reads back, with its metadata, and no request has more than a piece of it."""
    created = large.create(uri, LARGE, {"attempt": "ä"})

    assert created
    assert s3_faults.count("PUT", "partNumber=") == s3_faults.count("PUT") == 3
    assert large.read(uri) == LARGE
    assert large.metadata(uri) == {"attempt": "ä"}
    assert [*large.list(s3_folder)] == [large.stat(uri)]
    assert uploads(s3_folder) == []


@pytest.mark.parametrize("in_pieces", [None, False])
def test_one_request_writes_what_it_can_unless_the_store_takes_pieces(
    s3_faults: FaultProxy, uri: str, in_pieces: bool | None
) -> None:
    """Nothing is tried out with a part."""
    storage = S3Storage(timeout_s=5, deadline_s=30, in_pieces=in_pieces)

    assert storage.create(uri, LARGE, {})
    assert (s3_faults.count("POST"), s3_faults.count("PUT")) == (0, 1)


@pytest.mark.parametrize("kind", ["503", "reset", "lost_reply"])
def test_a_piece_is_repeated_by_itself(
    s3_faults: FaultProxy, large: Storage, uri: str, kind: FaultKind
) -> None:
    """What has come is not sent again."""
    s3_faults.inject(kind, method="PUT", key="partNumber=2", count=2)

    created = large.create(uri, LARGE, {})

    assert created
    assert [s3_faults.count("PUT", f"partNumber={number}") for number in (1, 2, 3)] == [1, 3, 1]
    assert large.read(uri) == LARGE


@pytest.mark.parametrize("kind", ["lost_reply", "503", "409", "reset", "412"])
def test_a_broken_completion_is_still_a_commit(
    s3_faults: FaultProxy, large: Storage, s3_folder: str, uri: str, kind: FaultKind
) -> None:
    """If its reply was lost, the metadata shows whose object it is; and nothing else stays in the bucket."""
    s3_faults.inject(kind, method="POST", key=COMPLETION, count=1)

    committed = commit_part(large, uri, large_part(1), IDENTITY, attempt="a")

    assert committed
    assert row_of(large, uri) == 1
    assert uploads(s3_folder) == []


def test_a_conflict_at_the_completion_uploads_the_pieces_again(
    s3_faults: FaultProxy, large: Storage, uri: str
) -> None:
    """As AWS demands it, after 409; and not for ever."""
    s3_faults.inject("409", method="POST", key=COMPLETION, count=1)
    created = large.create(uri, LARGE, {})
    s3_faults.inject("409", method="POST", key=COMPLETION, count=MAX_UPLOADS)
    with pytest.raises(StorageError, match="pieces were lost 3 times before"):
        large.create(uri + "2", LARGE, {})

    assert created
    assert s3_faults.count("POST", "?uploads") == 2 + MAX_UPLOADS


def test_a_wrong_412_at_the_completion_costs_no_piece(
    s3_faults: FaultProxy, large: Storage, uri: str
) -> None:
    """The same upload is completed once more."""
    s3_faults.inject("412", method="POST", key=COMPLETION, count=2)

    assert large.create(uri, LARGE, {})
    assert s3_faults.count("PUT") == 3


def test_a_large_object_leaves_what_is_there_alone(large: Storage, s3_folder: str, uri: str) -> None:
    """And its pieces do not stay in the bucket."""
    large.create(uri, b"first", {})

    assert not large.create(uri, LARGE, {})
    assert large.read(uri) == b"first"
    assert uploads(s3_folder) == []


def test_a_large_object_is_exchanged_for_the_one_that_was_meant(
    large: Storage, s3_folder: str, uri: str
) -> None:
    """And for no other one."""
    large.create(uri, LARGE, {})
    first = large.stat(uri)
    assert first is not None

    exchanged = large.exchange(uri, LARGE[1:], {"attempt": "b"}, etag=first.etag)
    again = large.exchange(uri, LARGE[2:], {"attempt": "c"}, etag=first.etag)

    assert (exchanged, again) == (True, False)
    assert large.read(uri) == LARGE[1:]
    assert large.metadata(uri) == {"attempt": "b"}
    assert uploads(s3_folder) == []


def test_of_8_attempts_in_pieces_one_commits(
    s3_faults: FaultProxy, large: Storage, s3_folder: str, uri: str
) -> None:
    """Replies are lost meanwhile: exactly one is told that its part counts, and no upload stays."""
    s3_faults.inject("lost_reply", method="POST", key=COMPLETION, count=4)
    barrier = threading.Barrier(8)

    def race(row: int) -> bool:
        content = large_part(row)
        barrier.wait()
        return commit_part(large, uri, content, IDENTITY, attempt=str(row))

    with ThreadPoolExecutor(8) as threads:
        committed = list(threads.map(race, range(8)))

    assert committed.count(True) == 1
    assert row_of(large, uri) == committed.index(True)
    assert uploads(s3_folder) == []


def test_an_upload_that_fails_is_dropped(
    s3_faults: FaultProxy, s3_folder: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be paid for, and no listing of objects shows it."""
    storage = S3Storage(timeout_s=30, deadline_s=60, in_pieces=True)
    s3_faults.inject("503", method="PUT", key="partNumber=2", count=1000)
    QuickWaits(monkeypatch)

    with pytest.raises(StorageError, match="upload_part did not succeed"):
        storage.create(uri, LARGE, {})

    assert storage.stat(uri) is None
    assert uploads(s3_folder) == []


def test_an_upload_that_somebody_dropped_is_begun_again(
    s3_faults: FaultProxy, large: Storage, s3_folder: str, uri: str
) -> None:
    """As long as the object is not there: another driver may have thought that nobody writes."""
    s3_faults.inject("hold", method="PUT", key="partNumber=2")

    with ThreadPoolExecutor(1) as threads:
        creation = threads.submit(large.create, uri, LARGE, {})
        wait_until(lambda: s3_faults.injected["hold"] == 1)
        open_storage(s3_folder).drop_unfinished(s3_folder)
        s3_faults.release()
        created = creation.result()

    assert created
    assert large.read(uri) == LARGE
    assert s3_faults.count("PUT", "partNumber=1") == 2


def test_uploads_of_writers_that_are_gone_are_dropped(
    s3_faults: FaultProxy, large: S3Storage, s3_folder: str
) -> None:
    """Those below the folder, and no others."""
    for key in ("a", "data/b", "data/b"):
        bucket, _, folder = s3_folder.removeprefix("s3://").partition("/")
        for target in (folder, f"{folder}-other"):
            large._call("create_multipart_upload", key, {"Bucket": bucket, "Key": f"{target}/{key}"})

    large.drop_unfinished(s3_folder)

    assert uploads(f"{s3_folder}/") == []
    assert len(uploads(f"{s3_folder}-other")) == 3


def test_a_store_that_lists_no_uploads_is_left_alone(
    s3_faults: FaultProxy, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing depends on it, and nobody waits for it."""
    s3_faults.inject("503", method="GET", key="uploads", count=1000)
    storage = S3Storage(timeout_s=30, deadline_s=900)
    waits = QuickWaits(monkeypatch)

    storage.drop_unfinished(s3_folder)

    assert s3_faults.injected["503"] == len(waits.seconds) + 1
    assert sum(waits.seconds) < DROP_WITHIN_S


def test_old_temporary_files_are_dropped_from_a_disk(tmp_path: Path) -> None:
    """A writer that was killed has left one; one that still writes has a young one."""
    temporary = tmp_path / "_darkroom" / "tmp"
    temporary.mkdir(parents=True)
    for name in ("old", "new"):
        (temporary / name).write_bytes(b"part")
    os.utime(temporary / "old", (1, 1))

    open_storage(str(tmp_path)).drop_unfinished(str(tmp_path))
    open_storage(str(tmp_path / "nothing")).drop_unfinished(str(tmp_path / "nothing"))

    assert [path.name for path in temporary.iterdir()] == ["new"]


class Careless(S3Storage):
    """A store that does not look at some conditions of the requests of one kind."""

    ignored = ("complete_multipart_upload", "IfNoneMatch", "IfMatch")

    def _call(self, operation: str, uri: str, arguments: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        careless_operation, *names = self.ignored
        if operation == careless_operation:
            arguments = {name: value for name, value in arguments.items() if name not in names}
        return super()._call(operation, uri, arguments, **options)


class CarelessOfCreations(Careless):
    """It looks at If-Match alone."""

    ignored = ("complete_multipart_upload", "IfNoneMatch")


class CarelessOfExchanges(Careless):
    """It looks at If-None-Match alone."""

    ignored = ("complete_multipart_upload", "IfMatch")


@pytest.mark.parametrize("kind", [None, "lost_reply"])
def test_a_store_that_keeps_its_word_takes_pieces(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str, kind: FaultKind | None
) -> None:
    """It is asked once, and nothing stays of it."""
    s3_faults.orderly = True
    output = Output(faulty, s3_folder)
    if kind:
        s3_faults.inject(kind, method="POST", key=COMPLETION, count=5)

    answer = takes_pieces(output)
    num_requests = len(s3_faults.requests)

    assert answer
    assert takes_pieces(output)
    assert len(s3_faults.requests) == num_requests
    assert [*faulty.list(s3_folder)] == []
    assert uploads(s3_folder) == []


class Hasty(S3Storage):
    """A store that looks at the condition of a completion, and writes later."""

    def __init__(self, **limits: float) -> None:
        super().__init__(**limits)
        self._all_have_looked = threading.Barrier(actors.storage.pieces.NUM_WRITERS)

    def _call(self, operation: str, uri: str, arguments: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        if operation == "complete_multipart_upload" and "IfNoneMatch" in arguments:
            if self.stat(uri):
                raise PreconditionError(uri)
            self._all_have_looked.wait(60)
            arguments = {name: value for name, value in arguments.items() if name != "IfNoneMatch"}
        return super()._call(operation, uri, arguments, **options)


@pytest.mark.parametrize("kind", [Careless, CarelessOfCreations, CarelessOfExchanges, Hasty])
def test_a_store_that_ignores_the_condition_of_a_completion_gets_no_pieces(
    s3_faults: FaultProxy, s3_folder: str, uri: str, kind: type[S3Storage]
) -> None:
    """Two workers could overwrite each other's parts; one request writes up to 5 GiB there."""
    s3_faults.orderly = True
    storage = kind(timeout_s=30, deadline_s=60)

    assert not takes_pieces(Output(storage, s3_folder))
    assert storage.create(uri, LARGE, {})
    assert not storage.create(uri, LARGE[1:], {})
    assert storage.read(uri) == LARGE
    assert uploads(s3_folder) == []


@pytest.mark.parametrize(("num_conflicts", "answer"), [(10, True), (100_000, False)])
def test_a_conflict_is_no_proof_against_a_store(
    s3_faults: FaultProxy, large: S3Storage, s3_folder: str, num_conflicts: int, answer: bool
) -> None:
    """AWS may answer so to who loses a race. If nobody ever wins, the store does not know pieces."""
    s3_faults.inject("409", method="POST", key=COMPLETION, count=num_conflicts)
    bucket, _, folder = s3_folder.removeprefix("s3://").partition("/")

    assert one_wins(large._call, s3_folder, {"Bucket": bucket, "Key": f"{folder}/a"}) == answer
    assert uploads(s3_folder) == []


def test_a_store_that_is_known_to_be_hasty_is_not_asked(s3_faults: FaultProxy, s3_folder: str) -> None:
    """SeaweedFS passes some races by chance."""
    storage = open_storage(s3_folder)

    assert not takes_pieces(Output(storage, s3_folder))
    assert s3_faults.count("POST") == 0
    assert [*storage.list(s3_folder)] == []


@pytest.mark.parametrize("key", ["?uploads", COMPLETION])
def test_a_store_that_knows_no_pieces_gets_none(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str, key: str
) -> None:
    """Whatever it answers to such requests."""
    s3_faults.orderly = True
    s3_faults.inject("404", method="POST", key=key, count=10)

    assert not takes_pieces(Output(faulty, s3_folder))
    assert [*faulty.list(s3_folder)] == []


def test_a_job_of_parts_too_large_for_its_store_is_refused(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str
) -> None:
    """Before anything is generated, with the number of rows that fit; what the store can take is not."""
    s3_faults.orderly = True
    careless = Output(Careless(timeout_s=30, deadline_s=60), s3_folder)
    honest = Output(faulty, s3_folder)
    too_large = LargestPart(rows=4000, size_bytes=8 << 30)

    with pytest.raises(SpecError, match=r"of 4,000 rows .* 8\.6 GB.*batching\.shard_rows=2500$"):
        refuse_large_parts(careless, too_large)
    refuse_large_parts(careless, LargestPart(rows=2500, size_bytes=5 << 30))
    refuse_large_parts(honest, too_large)


def test_a_part_on_a_disk_has_no_limit(tmp_path: Path) -> None:
    """But the disk's size, which is checked elsewhere."""
    output = Output(open_storage(str(tmp_path)), str(tmp_path))

    refuse_large_parts(output, LargestPart(rows=4000, size_bytes=8 << 30))

    assert [*tmp_path.iterdir()] == []


@pytest.fixture
def short_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies of at most one MiB are read."""
    monkeypatch.setattr(actors.storage.s3, "MAX_RANGE_BYTES", 1 << 20)


@pytest.mark.usefixtures("short_replies")
@pytest.mark.parametrize("kind", ["503", "reset", "truncate"])
def test_a_range_of_a_large_object_is_repeated_by_itself(
    s3_faults: FaultProxy, large: Storage, uri: str, kind: FaultKind
) -> None:
    """What has come is not asked for again: one request to see its size, and eleven for its ranges."""
    large.create(uri, LARGE, {})
    s3_faults.calm()
    first = large.read(uri)
    num_requests = s3_faults.count("GET")
    s3_faults.inject(kind, method="GET", count=2)

    second = large.read(uri)
    # The first reply's body is not looked at.
    num_noticed = 1 if kind == "truncate" else 2

    assert first == second == LARGE
    assert num_requests == 1 + 11
    assert s3_faults.count("GET") == 2 * num_requests + num_noticed


class ChangedMeanwhile(S3Storage):
    """A store whose object is replaced behind each range that is read, a few times."""

    contents: list[bytes]

    def read_range(self, stored: StoredObject, start: int, stop: int) -> bytes:
        data = super().read_range(stored, start, stop)
        if self.contents:
            self.replace(stored.uri, self.contents.pop())
        return data


@pytest.mark.usefixtures("short_replies")
def test_an_object_that_changes_while_it_is_read_is_read_again(s3_env: object, uri: str) -> None:
    """Its reader gets one of its contents, which may also be a short one, and never a mixture."""
    storage = ChangedMeanwhile(timeout_s=30, deadline_s=60)
    storage.contents = []
    storage.create(uri, LARGE, {})
    storage.contents = [LARGE[:10], LARGE[1:]]

    content = storage.read(uri)

    assert content == LARGE[:10]


@pytest.mark.usefixtures("short_replies")
def test_an_object_that_changes_without_end_is_given_up(s3_env: object, uri: str) -> None:
    """Its writer is quicker than its reader."""
    storage = ChangedMeanwhile(timeout_s=30, deadline_s=60)
    storage.contents = []
    storage.create(uri, LARGE, {})
    storage.contents = [LARGE[number:] for number in range(100)]

    with pytest.raises(StorageError, match="changed 10 times while it was being read"):
        storage.read(uri)


class CarelessReader(Careless):
    """A store that does not look at the condition of a read."""

    ignored = ("get_object", "IfMatch")


@pytest.mark.usefixtures("short_replies")
def test_a_store_that_ignores_the_condition_of_a_read_is_noticed(s3_env: object, uri: str) -> None:
    """By the ETag of its replies."""
    storage = CarelessReader(timeout_s=30, deadline_s=60)
    storage.create(uri, LARGE, {})
    stored = storage.stat(uri)
    assert stored is not None
    storage.replace(uri, LARGE[::-1])

    with pytest.raises(StorageError, match="changed while it was being read"):
        storage.read_range(stored, 0, 10)


class WithoutRanges(S3Storage):
    """A store that answers every read with the whole object."""

    def _call(self, operation: str, uri: str, arguments: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        arguments = {name: value for name, value in arguments.items() if name != "Range"}
        return super()._call(operation, uri, arguments, **options)


@pytest.mark.usefixtures("short_replies")
def test_a_large_object_at_a_store_without_ranges_is_not_read_into_memory(s3_env: object, uri: str) -> None:
    """A small one is."""
    storage = WithoutRanges(timeout_s=30, deadline_s=60)
    storage.create(uri, LARGE, {})
    storage.create(uri + "2", LARGE[:100], {})

    with pytest.raises(StorageError, match="asked for a range of at most"):
        storage.read_tail(uri, 10)
    with pytest.raises(StorageError, match="asked for a range of at most"):
        storage.read(uri)
    assert storage.read(uri + "2") == LARGE[:100]


@pytest.mark.parametrize(
    ("images", "size_bytes", "is_asked"),
    [
        ("parquet", 256 << 20, False),
        ("parquet", (256 << 20) + 1, True),
        ("parquet", 0, True),
        ("files", 0, False),
    ],
)
def test_workers_are_told_to_write_in_pieces_only_if_a_part_may_be_large(
    s3_faults: FaultProxy,
    faulty: Storage,
    s3_folder: str,
    tmp_path: Path,
    images: str,
    size_bytes: int,
    is_asked: bool,
) -> None:
    """Twice the estimate counts. If there is none, the store is asked."""
    s3_faults.orderly = True
    rows = write_rows(tmp_path / "rows.parquet", [{"row_id": "a", "prompt": "x"}])
    spec = job_spec(rows, tmp_path, output={"path": s3_folder, "images": images})

    plan = for_store(plan_for(spec), Output(faulty, s3_folder), size_bytes)

    assert plan.job.in_pieces == is_asked
    assert bool(s3_faults.requests) == is_asked
