"""Storage: what local disk and S3 do alike, and what S3 does when requests go wrong."""

import asyncio
import io
import mmap
import os
import resource
import signal
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions
import botocore.parsers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from fsspec.asyn import get_loop

from actors.storage.local_disk import LocalStorage
from actors.storage.objects import MAX_PUT_BYTES, Storage, StoredObject, Tail
from actors.storage.output import open_output
from actors.storage.s3 import (
    BLOCK_BYTES,
    CACHED_BLOCKS,
    MAX_RANGE_BYTES,
    SLOWEST_UPLOAD_BYTES_PER_S,
    TAIL_BYTES,
    S3Storage,
)
from actors.storage.s3_errors import is_transient
from actors.storage.stores import Stores, open_storage
from actors.storage.uris import join, normalise
from schemas.errors import RefusedError, SpecError, StorageError
from tests.support.running import wait_until
from tests.support.s3.fault_proxy import FaultKind, FaultProxy
from tests.support.s3.quick_waits import QuickWaits


def test_create_writes_an_object_that_reads_back(storage: Storage, folder: str) -> None:
    """What create wrote, read, open and stat agree on."""
    uri = join(folder, "data", "a.parquet")

    created = storage.create(uri, b"content", {})

    assert created
    assert storage.read(uri) == b"content"
    with storage.open(uri) as file:
        assert file.read() == b"content"
    stored = storage.stat(uri)
    assert stored is not None
    assert (stored.uri, stored.size_bytes) == (uri, 7)


@pytest.mark.parametrize("first", [b"content", b""], ids=["full", "empty"])
def test_create_leaves_what_is_there_alone(storage: Storage, folder: str, first: bytes) -> None:
    """A second create says False and changes nothing, for empty objects too."""
    uri = join(folder, "a")
    storage.create(uri, first, {})

    created = storage.create(uri, b"other", {})

    assert not created
    assert storage.read(uri) == first


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, pa.py_buffer])
def test_create_takes_any_buffer(storage: Storage, folder: str, kind: type) -> None:
    """A part may come as bytes or as a view of Arrow's memory."""
    buffer = kind(b"content")

    storage.create(join(folder, "a"), memoryview(buffer), {})

    assert storage.read(join(folder, "a")) == b"content"


def test_of_16_racing_writers_one_wins(storage: Storage, folder: str) -> None:
    """Exactly one of 16 threads is told that it created the object, and it is that one's content."""
    barrier = threading.Barrier(16)

    def race(writer: int) -> bool:
        barrier.wait()
        return storage.create(join(folder, "data", "a"), b"%d" % writer, {})

    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(race, range(16)))

    assert won.count(True) == 1
    assert storage.read(join(folder, "data", "a")) == b"%d" % won.index(True)


def test_list_gives_objects_at_any_depth_sorted_by_uri(storage: Storage, folder: str) -> None:
    """Order is that of whole URIs; `data-b` is not below `data`, and neither is `data` itself."""
    for name in ["data/b", "data/a/x", "data/a-b", "data/a.c", "data-b", "data/ä b"]:
        storage.create(join(folder, *name.split("/")), b"12", {})

    below = list(storage.list(join(folder, "data")))
    everything = [stored.uri for stored in storage.list(folder)]

    expected = [join(folder, name) for name in ["data/a-b", "data/a.c", "data/a/x", "data/b", "data/ä b"]]
    assert [stored.uri for stored in below] == expected
    assert [stored.size_bytes for stored in below] == [2] * 5
    assert everything == [join(folder, "data-b"), *expected]


def test_sizes_are_listed_of_the_same_objects(storage: Storage, folder: str) -> None:
    """In whatever order they come; what is no file is none of them."""
    for name, size in {"data/b": 3, "data/a/x": 0, "data-b": 5}.items():
        storage.create(join(folder, *name.split("/")), bytes(size), {})
    if isinstance(storage, LocalStorage):
        os.mkfifo(join(folder, "data", "pipe"))
        os.symlink("nowhere", join(folder, "data", "link"))

    listed = {stored.uri: stored.size_bytes for stored in storage.list_sizes(join(folder, "data"))}

    assert listed == {join(folder, "data/b"): 3, join(folder, "data/a/x"): 0}
    assert list(storage.list_sizes(join(folder, "nothing"))) == []


@pytest.mark.parametrize("size", [0, 9, 10, 11, 100_000])
def test_the_tail_of_an_object_is_its_last_bytes(storage: Storage, folder: str, size: int) -> None:
    """Or all of it, and how long it is."""
    content = os.urandom(size)
    storage.create(join(folder, "a"), content, {})

    tail = storage.read_tail(join(folder, "a"), 10)

    assert tail == Tail(data=content[-10:], size_bytes=size)


def test_nothing_has_no_tail(storage: Storage, folder: str) -> None:
    """As it cannot be opened."""
    with pytest.raises(FileNotFoundError):
        storage.read_tail(join(folder, "a"), 10)


def test_a_tail_takes_one_request(s3_faults: FaultProxy, faulty: Storage, s3_folder: str) -> None:
    """For no more than its bytes: a reader of a footer is done with it."""
    faulty.create(join(s3_folder, "a"), bytes(3 * BLOCK_BYTES), {})
    s3_faults.calm()

    faulty.read_tail(join(s3_folder, "a"), 10_000)

    assert [line.split()[0] for line in s3_faults.requests] == ["GET"]
    assert s3_faults.bytes_sent < 11_000


def test_a_store_that_knows_no_ranges_gives_a_tail_too() -> None:
    """It answers with the whole object."""
    storage = WholeAnswers(timeout_s=1, deadline_s=1)

    assert storage.read_tail("s3://bucket/a", 4) == Tail(data=b"tent", size_bytes=7)


class WholeAnswers(S3Storage):
    """A store of one object that does not look at ranges."""

    def _call(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"Body": b"content", "ContentLength": 7}


def test_a_folder_marker_is_not_listed(s3_env: object, s3_folder: str) -> None:
    """Consoles and sync tools make empty objects whose key ends with a slash."""
    storage = open_storage(s3_folder)
    storage.replace(f"{s3_folder}/data/", b"")

    assert list(storage.list(s3_folder)) == []


def test_list_of_nothing_is_empty(storage: Storage, folder: str) -> None:
    """A folder that is not there holds no objects, and an object is not a folder."""
    storage.create(join(folder, "a"), b"", {})

    assert list(storage.list(join(folder, "nothing"))) == []
    assert list(storage.list(join(folder, "a"))) == []


def test_list_sees_what_another_client_just_wrote(storage: Storage, folder: str) -> None:
    """Listings are never answered from a cache."""
    assert list(storage.list(folder)) == []

    open_storage(folder).create(join(folder, "a"), b"", {})

    assert [stored.uri for stored in storage.list(folder)] == [join(folder, "a")]


def test_list_and_stat_describe_an_object_alike(storage: Storage, folder: str) -> None:
    """The plan's input list holds what a later stat can be compared with."""
    storage.create(join(folder, "a"), b"content", {})

    listed = list(storage.list(folder))

    assert listed == [storage.stat(join(folder, "a"))]


def test_the_etag_follows_the_content(storage: Storage, folder: str) -> None:
    """Equal content has an equal etag wherever it lies; one byte changed at either end shows, and one byte
    more in the middle."""
    contents = {
        "a": b"x" * 200_000,
        "copy": b"x" * 200_000,
        "end": b"x" * 199_999 + b"y",
        "start": b"y" + b"x" * 199_999,
        "longer": b"x" * 200_001,
    }
    for name, content in contents.items():
        storage.create(join(folder, name), content, {})

    etags = {stored.uri.rsplit("/")[-1]: stored.etag for stored in storage.list(folder)}

    assert etags["a"] == etags["copy"]
    assert len({*etags.values()}) == 4


def test_a_local_etag_survives_a_new_mtime(tmp_path: Path) -> None:
    """A file copied to another node is the same input there."""
    path = tmp_path / "a"
    path.write_bytes(b"content")
    before = open_storage(str(tmp_path)).stat(str(path))

    os.utime(path, (1, 1))

    assert open_storage(str(tmp_path)).stat(str(path)) == before


def test_nothing_is_not_found(storage: Storage, folder: str) -> None:
    """stat says None; read, open and (on S3) metadata raise FileNotFoundError."""
    uri = join(folder, "nothing")

    assert storage.stat(uri) is None
    with pytest.raises(FileNotFoundError):
        storage.read(uri)
    with pytest.raises(FileNotFoundError):
        storage.open(uri)


def test_a_folder_is_not_an_object(storage: Storage, folder: str) -> None:
    """stat of a folder is None, on stores that keep folders too."""
    storage.create(join(folder, "data", "a"), b"", {})

    assert storage.stat(join(folder, "data")) is None


def test_delete_removes_and_does_not_mind_absence(storage: Storage, folder: str) -> None:
    """Deleting twice is deleting once."""
    uri = join(folder, "a")
    storage.create(uri, b"content", {})

    storage.delete(uri)
    storage.delete(uri)

    assert storage.stat(uri) is None


def test_replace_writes_over(storage: Storage, folder: str) -> None:
    """Reports are written again and again under one name."""
    uri = join(folder, "_darkroom", "summary.json")

    storage.replace(uri, b"first")
    storage.replace(uri, b"second")

    assert storage.read(uri) == b"second"


def test_exchange_replaces_the_object_that_was_meant(storage: Storage, folder: str) -> None:
    """With its etag; metadata are the new content's."""
    uri = join(folder, "a")
    storage.create(uri, b"first", {"attempt": "one"})
    there = storage.stat(uri)
    assert there is not None

    exchanged = storage.exchange(uri, b"second", {"attempt": "two"}, etag=there.etag)

    assert exchanged
    assert storage.read(uri) == b"second"
    assert storage.metadata(uri) in ({"attempt": "two"}, {})


def test_exchange_leaves_any_other_object_alone(storage: Storage, folder: str) -> None:
    """One that has been replaced since, and a place where there is none."""
    uri = join(folder, "a")
    storage.create(uri, b"first", {})
    there = storage.stat(uri)
    assert there is not None
    storage.replace(uri, b"other")

    assert not storage.exchange(uri, b"second", {}, etag=there.etag)
    assert not storage.exchange(join(folder, "b"), b"second", {}, etag=there.etag)
    assert storage.read(uri) == b"other"
    assert storage.stat(join(folder, "b")) is None


@pytest.mark.parametrize("kind", ["404", "412"])
def test_an_exchange_of_an_object_that_is_gone_does_nothing(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str, kind: FaultKind
) -> None:
    """Some stores answer 404 and some 412."""
    s3_faults.inject(kind, method="PUT")

    exchanged = faulty.exchange(join(s3_folder, "a"), b"second", {}, etag="0" * 32)

    assert not exchanged
    assert s3_faults.count("PUT") == 1
    assert faulty.stat(join(s3_folder, "a")) is None


def test_of_8_racing_exchanges_one_wins(storage: Storage, folder: str) -> None:
    """All of them meant the same object."""
    uri = join(folder, "a")
    storage.create(uri, b"first", {})
    there = storage.stat(uri)
    assert there is not None

    with ThreadPoolExecutor(8) as threads:
        won = [*threads.map(lambda i: storage.exchange(uri, f"{i}".encode(), {}, etag=there.etag), range(8))]

    assert sum(won) == 1
    assert storage.read(uri) == f"{won.index(True)}".encode()


def test_s3_keeps_metadata_of_any_text(s3_env: object, s3_folder: str) -> None:
    """Shard names hold file names, which are not ASCII everywhere; headers are."""
    storage = open_storage(s3_folder)
    metadata = {"job": "3f2a", "shard": "s3://inp/Büro 100%.parquet:sd15:0-256", "attempt": "1"}

    storage.create(join(s3_folder, "a"), b"", metadata)

    assert storage.metadata(join(s3_folder, "a")) == metadata


def test_local_disk_keeps_no_metadata(tmp_path: Path) -> None:
    """There is no portable place for it."""
    storage = open_storage(str(tmp_path))
    storage.create(str(tmp_path / "a"), b"", {"job": "x"})

    assert storage.metadata(str(tmp_path / "a")) == {}


def test_a_local_write_leaves_no_other_file(tmp_path: Path) -> None:
    """Temporary files lie outside of `data/`, are never listed, and are gone afterwards."""
    storage = open_storage(str(tmp_path))

    storage.create(str(tmp_path / "data" / "a"), b"first", {})
    storage.create(str(tmp_path / "data" / "a"), b"second", {})
    storage.replace(str(tmp_path / "data" / "b"), b"")

    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a", "b"]


def test_a_link_that_was_made_although_the_disk_says_otherwise_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk repeats a request whose reply was lost, and then meets its own link."""
    storage = open_storage(str(tmp_path))
    link = os.link

    def link_twice(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)

    created = storage.create(str(tmp_path / "a"), b"first", {})
    created_again = storage.create(str(tmp_path / "a"), b"second", {})

    assert (created, created_again) == (True, False)
    assert (tmp_path / "a").read_bytes() == b"first"


def test_opening_and_reading_local_storage_writes_nothing(tmp_path: Path) -> None:
    """An input folder can be read-only."""
    storage = open_storage(str(tmp_path))

    assert list(storage.list(str(tmp_path))) == []
    assert list(tmp_path.iterdir()) == []


def test_a_crashed_writers_temporary_file_is_not_listed(tmp_path: Path) -> None:
    """What is not finished is not there, as on S3."""
    storage = open_storage(str(tmp_path))
    (tmp_path / "_darkroom" / "tmp").mkdir(parents=True)
    (tmp_path / "_darkroom" / "tmp" / "half").write_bytes(b"ha")

    assert list(storage.list(str(tmp_path))) == []


def put_file(place: Path) -> None:
    place.write_bytes(b"x")


def put_link_to_nothing(place: Path) -> None:
    place.symlink_to("/no/such/place")


def put_loop(place: Path) -> None:
    place.symlink_to(place.name)


Access = Callable[[Storage, str], object]

WRITES: dict[str, Access] = {
    "create": lambda storage, uri: storage.create(uri, b"", {}),
    "replace": lambda storage, uri: storage.replace(uri, b""),
}
READS: dict[str, Access] = {
    "read": lambda storage, uri: storage.read(uri),
    "open": lambda storage, uri: storage.open(uri),
}
LOOKS: dict[str, Access] = {
    "stat": lambda storage, uri: storage.stat(uri),
    "list": lambda storage, uri: [*storage.list(uri)],
}


@pytest.mark.parametrize("access", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("put", [put_file, put_link_to_nothing, put_loop, os.mkfifo])
@pytest.mark.parametrize("place", ["out", "out/_darkroom", "out/_darkroom/tmp"])
def test_what_stands_where_a_folder_is_needed_is_named(
    tmp_path: Path, access: Access, put: Callable[[Path], object], place: str
) -> None:
    """It stays there until somebody moves it: no trouble of the storage's, which may pass."""
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    put(tmp_path / place)
    out = str(tmp_path / "out")

    with pytest.raises(SpecError, match=rf"{tmp_path / place} is a .*, not a folder; move it away"):
        access(open_storage(out), join(out, "_darkroom", "job.json"))


@pytest.mark.parametrize("put", [Path.mkdir, put_link_to_nothing, put_loop, os.mkfifo])
@pytest.mark.parametrize("access", READS.values(), ids=READS)
def test_what_stands_where_a_file_is_read_is_named(
    tmp_path: Path, put: Callable[[Path], object], access: Access
) -> None:
    """A pipe is not waited for, nor a device read to an end that it has not."""
    place = tmp_path / "job.json"
    put(place)
    storage = open_storage(str(tmp_path))

    with pytest.raises(RefusedError, match=rf"{place} is a .*; move it away"):
        access(storage, str(place))
    assert storage.stat(str(place)) is None


def test_a_file_is_not_written_over_a_folder(tmp_path: Path) -> None:
    """The folder is somebody's."""
    (tmp_path / "contact-sheet.html").mkdir()

    with pytest.raises(RefusedError, match=r"contact-sheet\.html is a folder, not a file; move it away"):
        open_storage(str(tmp_path)).replace(str(tmp_path / "contact-sheet.html"), b"page")


@pytest.mark.parametrize("put", [Path.mkdir, put_link_to_nothing, put_loop, os.mkfifo])
def test_what_stands_where_a_file_is_made_is_named(tmp_path: Path, put: Callable[[Path], object]) -> None:
    """It is no object that another writer has made first."""
    put(tmp_path / "driver.json")

    with pytest.raises(RefusedError, match=r"driver\.json is .*, not a file; move it away"):
        open_storage(str(tmp_path)).create(str(tmp_path / "driver.json"), b"x", {})


@pytest.mark.parametrize("access", [*WRITES.values(), *READS.values(), *LOOKS.values()])
def test_a_name_that_no_disk_holds_is_said_to_be_too_long(tmp_path: Path, access: Access) -> None:
    """Whether it is to be read, written or listed."""
    place = str(tmp_path / ("x" * 300))

    with pytest.raises(SpecError, match="too long for this disk; choose a shorter one"):
        access(open_storage(place), place)


def test_an_object_that_is_too_large_is_not_read(storage: Storage, folder: str) -> None:
    """Only its beginning has come by then."""
    uri = join(folder, "job.json")
    storage.create(uri, bytes(100), {})

    assert storage.read(uri, 100) == bytes(100)
    with pytest.raises(RefusedError, match="has 100 bytes; at most 99 are read"):
        storage.read(uri, 99)


def test_a_place_where_nothing_can_be_made_is_a_storage_error() -> None:
    """Linux says of such that the file is not there, which a reader would take for an answer."""
    with pytest.raises(StorageError, match="/proc/darkroom/a: No such file"):
        open_storage("/proc/darkroom").create("/proc/darkroom/a", b"", {})


@pytest.mark.parametrize("write", ["create", "replace", "exchange"])
def test_a_disk_that_fills_up_keeps_nothing_half_written(tmp_path: Path, write: str) -> None:
    """The part that did not fit is not there, what was there is, and no temporary file takes room."""
    storage, uri = open_storage(str(tmp_path)), str(tmp_path / "data" / "part")
    if write != "create":
        storage.create(uri, b"whole", {})
    before = [*storage.list(str(tmp_path))]
    writers: dict[str, Callable[[bytes], object]] = {
        "create": lambda data: storage.create(uri, data, {}),
        "replace": lambda data: storage.replace(uri, data),
        "exchange": lambda data: storage.exchange(uri, data, {}, etag=before[0].etag),
    }

    # A limit for one file: the kernel stops a write in its midst, as on a disk without room.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StorageError, match="check free space"):
            writers[write](bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [*storage.list(str(tmp_path))] == before
    assert [*(tmp_path / "_darkroom" / "tmp").iterdir()] == []


def test_a_target_on_another_file_system_is_refused(tmp_path: Path) -> None:
    """A hard link cannot cross, and nothing else commits."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    target = elsewhere / f"darkroom-{uuid.uuid4().hex}"

    with pytest.raises(RefusedError, match="one file system"):
        open_storage(str(tmp_path)).create(str(target), b"", {})

    assert not target.exists()


@pytest.fixture(scope="module")
def parquet() -> bytes:
    """A Parquet file of several blocks, one column of it far longer than a block."""
    noise = os.urandom(700_000)
    table = pa.table(
        {
            "row_id": range(40),
            "image": [noise[row:] for row in range(40)],
            "prompt": [noise[row : row + 20_000].hex() for row in range(40)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=10, compression="none", use_dictionary=False)
    return sink.getvalue()


@pytest.mark.parametrize("buffer_size", [0, 65536], ids=["whole-chunks", "streams"])
def test_pyarrow_reads_parquet_through_open(
    storage: Storage, folder: str, parquet: bytes, buffer_size: int
) -> None:
    """Both of pyarrow's ways of reading, several threads included, see the file as it is."""
    assert len(parquet) > 6 * BLOCK_BYTES
    storage.create(join(folder, "a.parquet"), parquet, {})

    with storage.open(join(folder, "a.parquet")) as file:
        batches = list(pq.ParquetFile(file, buffer_size=buffer_size).iter_batches(7, use_threads=True))

    assert pa.Table.from_batches(batches).equals(pq.read_table(io.BytesIO(parquet)))


def test_an_opened_object_seeks_like_a_file(storage: Storage, folder: str, parquet: bytes) -> None:
    """Any mix of seeks and reads, across blocks and past the end, gives a file's bytes."""
    storage.create(join(folder, "a"), parquet, {})
    end = len(parquet)
    jumps = [
        (0, 10),
        (BLOCK_BYTES - 5, 10),
        (end - 8, 8),
        (3, 2 * BLOCK_BYTES + 1),
        (end - 4, 100),
        (end + 9, 1),
    ]

    with storage.open(join(folder, "a")) as file:
        for offset, length in jumps:
            file.seek(offset)
            assert file.read(length) == parquet[offset : offset + length]
            assert file.tell() == max(offset, min(offset + length, end))
        assert file.seek(-5, os.SEEK_END) == end - 5
        assert file.read() == parquet[-5:]
        file.seek(BLOCK_BYTES - 3)
        assert file.seek(2 * BLOCK_BYTES, os.SEEK_CUR) == 3 * BLOCK_BYTES - 3
        assert file.read(10) == parquet[3 * BLOCK_BYTES - 3 :][:10]
        assert file.seek(0) == 0
        assert file.read() == parquet


class Ranges(S3Storage):
    """A store of one object in memory, which notes the ranges that it is asked for."""

    def __init__(self, content: bytes) -> None:
        super().__init__(timeout_s=1, deadline_s=1)
        self._content = content
        self.asked: list[tuple[int, int]] = []

    def stat(self, uri: str) -> StoredObject:
        return StoredObject(uri=uri, size_bytes=len(self._content), etag="")

    def read_range(self, stored: StoredObject, start: int, stop: int) -> bytes:
        self.asked.append((start, stop))
        return self._content[start:stop]


def test_an_opened_object_keeps_the_blocks_that_were_used_last() -> None:
    """As many as its cache has room for: memory is bounded, and a reader that jumps between a few columns
    fetches none of them twice."""
    storage = Ranges(bytes((CACHED_BLOCKS + 1) * BLOCK_BYTES))

    with storage.open("s3://bucket/a") as file:
        for block in [*range(CACHED_BLOCKS), 0, CACHED_BLOCKS, 0, 1]:
            file.seek(block * BLOCK_BYTES)
            file.read(10)

    blocks = [start // BLOCK_BYTES for start, _ in storage.asked]
    assert blocks == [*range(CACHED_BLOCKS), CACHED_BLOCKS, 1]
    assert {stop - start for start, stop in storage.asked} == {BLOCK_BYTES}


def test_the_end_of_an_opened_object_is_a_block_of_its_own() -> None:
    """A footer takes 64 KiB, and not 4 MiB; with the block before it, nothing is fetched twice."""
    content = os.urandom(2 * BLOCK_BYTES - 1)
    footer, whole = Ranges(content), Ranges(content)

    with footer.open("s3://bucket/a") as file:
        file.seek(-TAIL_BYTES, os.SEEK_END)
        tail = file.read()
    with whole.open("s3://bucket/a") as file:
        parts = [file.read(BLOCK_BYTES // 2) for _ in range(5)]

    assert tail == content[-TAIL_BYTES:]
    assert footer.asked == [(len(content) - TAIL_BYTES, len(content))]
    assert b"".join(parts) == content
    assert whole.asked == [(0, BLOCK_BYTES), (BLOCK_BYTES, len(content))]


def test_a_long_read_is_several_requests() -> None:
    """None is for more bytes than come within a time-out, and their replies are joined in order."""
    content = os.urandom(MAX_RANGE_BYTES + BLOCK_BYTES + 1)
    storage = Ranges(content)

    with storage.open("s3://bucket/a") as file:
        data = file.read(len(content))

    assert data == content
    assert max(stop - start for start, stop in storage.asked) == MAX_RANGE_BYTES


def test_a_reply_that_is_too_short_is_not_taken_for_the_whole(s3_env: object, s3_folder: str) -> None:
    """A gateway may cut a range off."""
    storage = open_storage(s3_folder)
    storage.replace(join(s3_folder, "a"), b"content")
    stored = storage.stat(join(s3_folder, "a"))
    assert stored is not None
    assert isinstance(storage, S3Storage)

    with pytest.raises(StorageError, match="asked for bytes 0 to 8, got 7 bytes"):
        storage.read_range(stored, 0, 8)


def test_several_threads_share_a_storage(storage: Storage, folder: str) -> None:
    """Reading, writing and listing at once do not disturb one another."""

    def work(number: int) -> bytes:
        uri = join(folder, f"{number:02}")
        storage.create(uri, b"%d" % number, {})
        assert storage.stat(uri) in list(storage.list(folder))
        return storage.read(uri)

    with ThreadPoolExecutor(8) as threads:
        contents = list(threads.map(work, range(24)))

    assert contents == [b"%d" % number for number in range(24)]


@pytest.mark.parametrize("kind", ["500", "503", "409", "reset"])
def test_a_put_that_did_not_happen_is_repeated(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str, kind: FaultKind
) -> None:
    """Busy stores, conflicts and broken connections cost a few tries and nothing else."""
    s3_faults.inject(kind, method="PUT", count=3)

    created = faulty.create(join(s3_folder, "a"), b"content", {})

    assert created
    assert s3_faults.count("PUT") >= 4
    assert faulty.read(join(s3_folder, "a")) == b"content"


def test_a_412_is_believed_only_where_the_object_shows_it(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str
) -> None:
    """A gateway that is wrong about it costs a try; else a part would be taken for another worker's."""
    uri = join(s3_folder, "a")
    s3_faults.inject("412", method="PUT", count=2)
    created = faulty.create(uri, b"content", {})
    there = faulty.stat(uri)
    assert there is not None
    s3_faults.inject("412", method="PUT", count=2)

    exchanged = faulty.exchange(uri, b"other", {}, etag=there.etag)

    assert created
    assert exchanged
    assert faulty.read(uri) == b"other"


def test_a_store_that_always_says_412_is_given_up(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str
) -> None:
    """Nothing is there, and nothing can be written."""
    s3_faults.inject("412", method="PUT", count=1000)

    with pytest.raises(StorageError, match=r"because it exists already or has changed \(412\), which is"):
        faulty.create(join(s3_folder, "a"), b"content", {})


def test_every_repetition_is_logged(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator sees why a job waits; and no library below repeats requests on its own."""
    s3_faults.inject("503", method="PUT", count=2)

    faulty.create(join(s3_folder, "a"), b"", {})

    lines = [record.getMessage() for record in caplog.records if record.name == "actors.storage.retries"]
    # On a busy machine a try may time out as well: that is a line more and a request more.
    assert sum("SlowDown" in line for line in lines) == 2
    assert s3_faults.count("PUT") == len(lines) + 1
    assert f"put_object {join(s3_folder, 'a')}: " in lines[0]


def test_a_repeated_put_meets_its_own_first_write(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str
) -> None:
    """After a lost reply create says False although the object is there: whose it is, commit finds out."""
    s3_faults.inject("lost_reply", method="PUT")

    created = faulty.create(join(s3_folder, "a"), b"content", {})

    assert not created
    assert faulty.read(join(s3_folder, "a")) == b"content"


@pytest.mark.parametrize("kind", ["503", "reset", "lost_reply", "truncate", "corrupt"])
def test_reads_are_repeated(s3_faults: FaultProxy, faulty: Storage, s3_folder: str, kind: FaultKind) -> None:
    """A broken, shortened or altered reply is asked for again and never handed on."""
    faulty.create(join(s3_folder, "a"), b"content", {})
    s3_faults.inject(kind, method="GET", count=2)

    content = faulty.read(join(s3_folder, "a"))

    assert content == b"content"
    assert s3_faults.count("GET") == 3


@pytest.mark.parametrize("kind", ["503", "reset", "truncate"])
def test_reads_of_an_open_file_are_repeated(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str, kind: FaultKind
) -> None:
    """A fault in the middle of a file does not reach its reader."""
    content = os.urandom(BLOCK_BYTES + 100)
    faulty.create(join(s3_folder, "a"), content, {})

    with faulty.open(join(s3_folder, "a")) as file:
        start = file.read(10)
        s3_faults.inject(kind, method="GET", count=2)
        rest = file.read()

    assert start + rest == content


def test_a_listing_is_repeated(s3_faults: FaultProxy, faulty: Storage, s3_folder: str) -> None:
    """A listing that breaks is not a short listing."""
    faulty.create(join(s3_folder, "a"), b"", {})
    s3_faults.inject("truncate", method="GET", count=1)
    s3_faults.inject("503", method="GET", count=1)

    assert [stored.uri for stored in faulty.list(s3_folder)] == [join(s3_folder, "a")]


def test_a_long_listing_has_every_page(s3_env: object, s3_folder: str) -> None:
    """S3 lists a thousand objects at a time; the rest is not forgotten."""
    storage = open_storage(s3_folder)
    uris = [join(s3_folder, f"{number:04}") for number in range(1001)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda uri: storage.create(uri, b"", {}), uris))

    assert [stored.uri for stored in storage.list(s3_folder)] == uris


def test_endless_503_is_a_storage_error_at_the_deadline(
    s3_faults: FaultProxy, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the URI, the last error and what to check; no try starts after the deadline, and the
    waits between them grow to 20 s at most."""
    storage = open_storage(s3_folder, deadline_s=60)
    s3_faults.inject("503", method="PUT", count=20)
    waits = QuickWaits(monkeypatch)

    with pytest.raises(StorageError, match=r"SlowDown \(HTTP 503\)") as raised:
        storage.create(join(s3_folder, "a"), b"", {})

    assert waits.seconds == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20])
    assert s3_faults.count("PUT") == 9
    assert join(s3_folder, "a") in str(raised.value)
    assert "AWS_ENDPOINT_URL" in str(raised.value)


@pytest.mark.parametrize("opened_by", ["stores", "output"])
def test_requests_are_repeated_until_the_deadline_of_the_spec(
    s3_faults: FaultProxy, s3_folder: str, monkeypatch: pytest.MonkeyPatch, opened_by: str
) -> None:
    """Whether an object is opened by its URI or as one of an output."""
    uri = join(s3_folder, "a")
    storage = {
        "stores": lambda: Stores(2).of(uri),
        "output": lambda: open_output(s3_folder, deadline_s=2).storage,
    }[opened_by]()
    s3_faults.inject("503", method="HEAD", count=20)
    waits = QuickWaits(monkeypatch)

    with pytest.raises(StorageError, match="did not succeed within 2 s"):
        storage.stat(uri)

    assert waits.seconds == pytest.approx([0.2, 0.4, 0.8])


def test_all_objects_of_one_kind_share_a_storage(s3_env: object, tmp_path: Path) -> None:
    """A client for each of a million images would be too many; a file is not looked for on S3."""
    stores = Stores()
    uris = [str(tmp_path / "a"), "s3://out/a", str(tmp_path / "b"), "s3://inp/b"]

    opened = [stores.of(uri) for uri in uris]

    assert [type(storage) for storage in opened] == [LocalStorage, S3Storage] * 2
    assert opened[:2] == opened[2:]


def test_a_hanging_store_costs_one_time_out(s3_faults: FaultProxy, s3_folder: str) -> None:
    """A server that reads and never answers is cut off, and the request made again."""
    storage = open_storage(s3_folder, timeout_s=0.5)
    storage.create(join(s3_folder, "warm"), b"", {})
    s3_faults.inject("hang", method="PUT", count=1)
    started = time.monotonic()

    created = storage.create(join(s3_folder, "a"), b"", {})

    assert created
    assert time.monotonic() - started >= 0.5
    assert s3_faults.injected["hang"] == 1


def test_a_store_that_hangs_for_ever_is_given_up_at_the_deadline(
    s3_faults: FaultProxy, s3_folder: str
) -> None:
    """The last try does not outlast the deadline, however long its own time-out."""
    storage = open_storage(s3_folder, timeout_s=60, deadline_s=1)
    s3_faults.inject("hang", method="HEAD", count=10_000)
    started = time.monotonic()

    with pytest.raises(StorageError, match="head_object"):
        storage.stat(join(s3_folder, "a"))

    assert time.monotonic() - started < 30


def test_a_large_upload_has_more_time_than_a_small_request(
    s3_env: object, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as its bytes need on a slow line, beside the time-out."""
    storage = open_storage(s3_folder, timeout_s=30)
    timeouts: list[float] = []
    own_wait_for = asyncio.wait_for

    def wait_for(request: Awaitable[Any], timeout: float) -> Awaitable[Any]:
        timeouts.append(timeout)
        return own_wait_for(request, timeout)

    monkeypatch.setattr(asyncio, "wait_for", wait_for)

    storage.replace(join(s3_folder, "a"), bytes(2 * SLOWEST_UPLOAD_BYTES_PER_S))
    storage.read(join(s3_folder, "a"))

    assert timeouts == [32, 30]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_request_does_not_go_on_after_ctrl_c(s3_faults: FaultProxy, s3_folder: str) -> None:
    """It would write its object after the program has said that it ends."""
    storage = open_storage(s3_folder)
    storage.create(join(s3_folder, "warm"), b"", {})
    s3_faults.inject("hold", method="PUT", count=1)
    loop = get_loop()

    def press_ctrl_c() -> None:
        wait_until(lambda: s3_faults.injected["hold"] == 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with ThreadPoolExecutor(1) as threads:
        pressed = threads.submit(press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            storage.create(join(s3_folder, "a"), b"", {})
        pressed.result()

    wait_until(lambda: not asyncio.all_tasks(loop), timeout_s=10)


def test_wrong_credentials_fail_at_once(
    s3_faults: FaultProxy, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is not repeated, and the message speaks of credentials."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")

    with pytest.raises(StorageError, match=r"HTTP 403\).*credentials"):
        open_storage(s3_folder).create(join(s3_folder, "a"), b"", {})

    assert s3_faults.count("PUT") == 1


def test_no_credentials_fail_at_once(
    s3_faults: FaultProxy, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials nothing is sent, and the message says where they are looked for."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(StorageError, match=r"NoCredentialsError.*AWS_PROFILE"):
        list(open_storage(s3_folder).list(s3_folder))

    assert s3_faults.requests == []


def test_a_missing_bucket_is_not_a_missing_object(s3_faults: FaultProxy) -> None:
    """A typing error in the bucket's name must not look like an empty folder."""
    with pytest.raises(StorageError, match="NoSuchBucket"):
        open_storage("s3://no-such-bucket/a").read("s3://no-such-bucket/a")

    assert s3_faults.count("GET") == 1


def test_an_object_that_changes_under_a_reader_is_noticed(s3_env: object, s3_folder: str) -> None:
    """Half of the old and half of the new file would be neither."""
    storage = open_storage(s3_folder)
    storage.replace(join(s3_folder, "a"), bytes(2 * BLOCK_BYTES))

    with storage.open(join(s3_folder, "a")) as file:
        file.read(10)
        storage.replace(join(s3_folder, "a"), b"x" * 2 * BLOCK_BYTES)
        file.seek(BLOCK_BYTES + 1)
        with pytest.raises(StorageError, match="changed while"):
            file.read(10)


def test_s3_refuses_a_part_too_large_for_one_put(s3_env: object, s3_folder: str) -> None:
    """More than 5 GiB cannot be committed by one request; the message says what to change."""
    storage = open_storage(s3_folder)

    with (
        mmap.mmap(-1, MAX_PUT_BYTES + 1) as untouched_pages,
        memoryview(untouched_pages) as data,
        pytest.raises(SpecError, match="shard_rows"),
    ):
        storage.create(join(s3_folder, "a"), data, {})


@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [
        (500, "InternalError", True),
        (503, "SlowDown", True),
        (400, "SlowDown", True),
        (400, "RequestTimeout", True),
        (400, "BadDigest", True),
        (408, "RequestTimeout", True),
        (409, "ConditionalRequestConflict", True),
        (425, "TooEarly", True),
        (429, "TooManyRequests", True),
        (400, "InvalidArgument", False),
        (403, "AccessDenied", False),
        (404, "NoSuchKey", False),
        (412, "PreconditionFailed", False),
        (501, "NotImplemented", False),
    ],
)
def test_only_an_error_that_may_pass_is_repeated(status: int, code: str, transient: bool) -> None:
    """The store says by status or by code that it is busy; every other refusal would be the same again."""
    reply: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}

    assert is_transient(ClientError(reply, "PutObject")) == transient


def test_every_error_of_the_connection_is_repeated() -> None:
    """Whichever library notices it; without credentials no request can ever be sent."""
    url = {"endpoint_url": "http://localhost"}
    transient: list[Exception] = [
        botocore.exceptions.ConnectionClosedError(**url),
        botocore.exceptions.EndpointConnectionError(**url),
        botocore.exceptions.ReadTimeoutError(**url),
        botocore.exceptions.ChecksumError(checksum_type="crc32", expected_checksum=1, actual_checksum=2),
        botocore.exceptions.FlexibleChecksumError(error_msg="wrong"),
        botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        botocore.exceptions.ResponseStreamingError(error="broken"),
        botocore.parsers.ResponseParserError(),
        aiohttp.ClientPayloadError(),
        ConnectionResetError(),
        TimeoutError(),
    ]
    lasting: list[Exception] = [
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.ParamValidationError(report="wrong"),
        ValueError(),
    ]

    assert [error for error in transient if not is_transient(error)] == []
    assert [error for error in lasting if is_transient(error)] == []


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("s3://bucket/key/", "s3://bucket/key"),
        ("S3://bucket", "s3://bucket"),
        ("s3://bucket/rows/*.parquet", "s3://bucket/rows/*.parquet"),
        ("file:///data/a%20b", "/data/a b"),
        ("/data//rows/./a", "/data/rows/a"),
        ("/data/part-?.parquet", "/data/part-?.parquet"),
        ("/data/v1..v2/..a", "/data/v1..v2/..a"),
    ],
)
def test_normalise_gives_one_spelling(path: str, normal: str) -> None:
    """Plans are compared by URI: a path has one."""
    assert normalise(path) == normal
    assert normalise(normal) == normal


def test_normalise_makes_local_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have other working directories and homes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")

    assert normalise("rows") == str(tmp_path / "rows")
    assert normalise("~/rows") == "/home/somebody/rows"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "gs://bucket/key",
        "https://example.com/a",
        "simplecache::file:///etc/passwd",
        "s3://bucket/a::b",
        "s3://bucket/key?versionId=1",
        "file:///a?b",
        "file://host/a",
        "s3://bucket/a/../b",
        "../rows",
        "~nobody-of-that-name/rows",
        "/data/../etc/passwd",
        "/data/..",
        "file:///data/%2e%2e/etc",
        "s3:///key",
        "/data/\x00",
    ],
)
def test_normalise_refuses_everything_else(path: str) -> None:
    """The message names the value."""
    with pytest.raises(SpecError) as raised:
        normalise(path)

    assert repr(path) in str(raised.value)


def test_a_path_with_dots_is_refused_with_the_path_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be pasted."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SpecError, match=f"write {tmp_path.parent}/rows.csv$"):
        normalise("../rows.csv")


@pytest.mark.parametrize(
    "path",
    ["s3://key:secret@bucket/a", "s3://key:se/secret@bucket/a", "https://user:secret@host/a"],
)
def test_normalise_does_not_repeat_a_secret(path: str) -> None:
    """Credentials in a URI are refused, and the message does not carry them into a log."""
    with pytest.raises(SpecError) as raised:
        normalise(path)

    assert "secret" not in str(raised.value)
    assert "***@" in str(raised.value)


def test_the_signature_of_a_link_is_not_repeated() -> None:
    """Who has it has the object."""
    with pytest.raises(SpecError) as raised:
        normalise("https://host/a?X-Amz-Date=1&X-Amz-Signature=5ecret&part=2")

    assert "https://host/a?X-Amz-Date=1&X-Amz-Signature=***&part=2" in str(raised.value)
