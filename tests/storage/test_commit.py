"""The commit protocol: one part per shard, whatever happens to requests and replies."""

import errno
import fcntl
import io
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.parts.commit import PartIdentity, commit_part, probe
from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Buffer, Storage
from actors.storage.output import Output
from actors.storage.stores import open_storage
from actors.storage.uris import join
from schemas.errors import RefusedError, StorageError
from schemas.output_layout import JOB_KEY, SHARD_KEY
from tests.support.s3.fault_proxy import FaultKind, FaultProxy

IDENTITY = PartIdentity(job="job", shard="shard")


def part(job: str = "job", shard: str = "shard", *, row: int = 0) -> bytes:
    """A part as the writer makes it: its footer says whose it is."""
    table = pa.table({"row_id": [row]}).replace_schema_metadata({JOB_KEY: job, SHARD_KEY: shard})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def row_of(storage: Storage, uri: str) -> int:
    """The row that the part at `uri` was made with."""
    row: int = pq.read_table(io.BytesIO(storage.read(uri)))["row_id"][0].as_py()
    return row


def test_the_first_attempt_commits(storage: Storage, folder: str) -> None:
    """Its part is the one that stays."""
    uri = join(folder, "data", "part.parquet")

    committed = commit_part(storage, uri, part(row=1), IDENTITY, attempt="a")

    assert committed
    assert row_of(storage, uri) == 1


def test_a_second_attempt_at_a_shard_is_dropped(storage: Storage, folder: str) -> None:
    """Two workers may make one shard; the later part is not written and nothing fails."""
    uri = join(folder, "data", "part.parquet")
    commit_part(storage, uri, part(row=1), IDENTITY, attempt="a")

    committed = commit_part(storage, uri, part(row=2), IDENTITY, attempt="b")

    assert not committed
    assert row_of(storage, uri) == 1


@pytest.mark.parametrize(("job", "shard"), [("other job", "shard"), ("job", "other shard")])
def test_the_part_of_another_job_or_shard_is_refused(
    storage: Storage, folder: str, job: str, shard: str
) -> None:
    """It stays as it is, and the message names both owners."""
    uri = join(folder, "data", "part.parquet")
    commit_part(storage, uri, part(job, shard, row=1), PartIdentity(job=job, shard=shard), attempt="a")

    with pytest.raises(RefusedError, match=r"other.*'job', shard 'shard'"):
        commit_part(storage, uri, part(row=2), IDENTITY, attempt="b")

    assert row_of(storage, uri) == 1


@pytest.mark.parametrize("stray", [b"not Parquet", part().replace(b"darkroom", b"somebody")])
def test_something_that_is_no_part_is_refused(storage: Storage, folder: str, stray: bytes) -> None:
    """A file that somebody put in a part's place is neither trusted nor written over."""
    uri = join(folder, "data", "part.parquet")
    storage.create(uri, stray, {})

    with pytest.raises(RefusedError, match=uri):
        commit_part(storage, uri, part(), IDENTITY, attempt="a")

    assert storage.read(uri) == stray


@pytest.mark.parametrize("metadata", [{}, {"mtime": "1"}], ids=["none", "a tool's"])
def test_a_part_copied_without_its_metadata_is_known_by_its_footer(
    s3_env: object, s3_folder: str, metadata: dict[str, str]
) -> None:
    """Copying an output to another bucket does not stop its job from being resumed there."""
    storage = open_storage(s3_folder)
    uri = join(s3_folder, "data", "part.parquet")
    storage.create(uri, part(), metadata)

    assert not commit_part(storage, uri, part(), IDENTITY, attempt="a")


@pytest.mark.parametrize("kind", ["lost_reply", "503", "409", "reset"])
def test_a_broken_commit_is_still_a_commit(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str, kind: FaultKind
) -> None:
    """Also when the store did it and the reply was lost: the metadata shows whose attempt it was."""
    uri = join(s3_folder, "data", "part.parquet")
    s3_faults.inject(kind, method="PUT", count=2)

    committed = commit_part(faulty, uri, part(row=1), IDENTITY, attempt="a")

    assert committed
    assert row_of(faulty, uri) == 1


def test_a_lost_race_behind_a_lost_reply_is_not_mine(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str
) -> None:
    """A reply lost from a write that did not happen proves nothing."""
    uri = join(s3_folder, "data", "part.parquet")
    commit_part(faulty, uri, part(row=1), IDENTITY, attempt="a")
    s3_faults.inject("lost_reply", method="PUT")

    committed = commit_part(faulty, uri, part(row=2), IDENTITY, attempt="b")

    assert not committed
    assert row_of(faulty, uri) == 1


def test_of_16_attempts_with_lost_replies_one_commits(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str
) -> None:
    """Exactly one of 16 racing workers is told that its part counts, and it does."""
    uri = join(s3_folder, "data", "part.parquet")
    s3_faults.inject("lost_reply", method="PUT", count=8)
    barrier = threading.Barrier(16)

    def race(row: int) -> bool:
        content = part(row=row)
        barrier.wait()
        return commit_part(faulty, uri, content, IDENTITY, attempt=str(row))

    with ThreadPoolExecutor(16) as threads:
        committed = list(threads.map(race, range(16)))

    assert committed.count(True) == 1
    assert row_of(faulty, uri) == committed.index(True)


def test_the_probe_accepts_a_store_that_keeps_its_word(storage: Storage, folder: str) -> None:
    """And leaves nothing behind."""
    probe(Output(storage, folder))

    assert list(storage.list(folder)) == []


def test_the_probe_refuses_a_store_that_lies(s3_faults: FaultProxy, faulty: Storage, s3_folder: str) -> None:
    """A store that says yes to both writers cannot hold parts; the message names stores that can."""
    s3_faults.inject("lie", method="PUT", count=10)

    with pytest.raises(RefusedError, match=r"\(If-None-Match: \*\).* was accepted .*AWS S3"):
        probe(Output(faulty, s3_folder))

    assert list(faulty.list(s3_folder)) == []


class LyingStorage(LocalStorage):
    """A disk that breaks the condition of one kind of write."""

    def __init__(self, folder: Path, write: str, *, says: bool, does: bool) -> None:
        """`says`: the answer to a write whose condition is false; `does`: whether it is carried out."""
        super().__init__(temp_dir=str(folder / "tmp"))
        self._write, self._says, self._does = write, says, does

    def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
        return super().create(uri, data, metadata) or self._lie("create", uri, data)

    def exchange(self, uri: str, data: Buffer, metadata: Mapping[str, str], *, etag: str) -> bool:
        return super().exchange(uri, data, metadata, etag=etag) or self._lie("exchange", uri, data)

    def _lie(self, write: str, uri: str, data: Buffer) -> bool:
        if write != self._write:
            return False
        if self._does:
            self.replace(uri, bytes(data))
        return self._says


@pytest.mark.parametrize(("write", "header"), [("create", "If-None-Match"), ("exchange", "If-Match")])
@pytest.mark.parametrize(("says", "does"), [(True, True), (True, False), (False, True)])
def test_the_probe_looks_at_the_answer_and_at_what_is_stored(
    tmp_path: Path, write: str, header: str, says: bool, does: bool
) -> None:
    """The right answer with the wrong content is a lie too, and so is the wrong answer."""
    storage = LyingStorage(tmp_path, write, says=says, does=does)
    answer, left = ("accepted" if says else "refused"), ("second" if does else "first")

    with pytest.raises(RefusedError, match=rf"\({header}.* was {answer} and left b'{left}'"):
        probe(Output(storage, str(tmp_path)))


def test_a_part_that_vanishes_during_its_commit_is_a_failure_of_the_storage(tmp_path: Path) -> None:
    """The store says that it exists and then that it does not: the shard is tried again."""

    class Forgetful(LocalStorage):
        def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
            return False

    storage = Forgetful(temp_dir=str(tmp_path / "tmp"))

    with pytest.raises(StorageError, match="says both that it exists and that it does not"):
        commit_part(storage, str(tmp_path / "part"), part(), IDENTITY, attempt="a")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL])
def test_the_probe_refuses_a_disk_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Before anything is generated, with exit code 4 and that reason; nothing stays behind."""

    def link(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number), source, None, target)

    monkeypatch.setattr(os, "link", link)

    with pytest.raises(
        RefusedError, match=rf"\({os.strerror(number)}\): .* that has hard links; choose"
    ) as refused:
        probe(Output(open_storage(str(tmp_path)), str(tmp_path)))

    assert refused.value.exit_code == 4
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_the_probe_refuses_a_disk_without_file_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As NFS without its lock service: `retry` could not replace a part there."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)

    with pytest.raises(
        RefusedError, match=rf"\({os.strerror(number)}\): .* that has file locks; choose"
    ) as refused:
        probe(Output(open_storage(str(tmp_path)), str(tmp_path)))

    assert refused.value.exit_code == 4
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_probe_does_not_mind_lost_replies(s3_faults: FaultProxy, faulty: Storage, s3_folder: str) -> None:
    """A bad network at start-up is not a bad store."""
    s3_faults.inject("lost_reply", method="PUT", count=2)

    probe(Output(faulty, s3_folder))
