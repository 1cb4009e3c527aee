"""Who drives an output: one driver at a time, and the one that is found dead is succeeded."""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Buffer, Storage, StoredObject
from actors.storage.output import Output, open_output
from actors.storage.stores import open_storage
from actors.storage.uris import join
from jobs.output import lease as lease_module
from jobs.output.lease import PATIENCE_S, RENEW_EVERY_S, VALID_S, WATCH_S, Lease, read_lease
from jobs.output.tally import Tally, WorkersNow
from schemas.errors import RefusedError
from schemas.output_layout import LEASE
from tests.support.running import wait_until
from tests.support.s3.fault_proxy import FaultProxy
from tests.support.s3.quick_waits import QuickWaits

TALLY = Tally(rows_total=1, rows_before=0)


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a healthy store can take longer than a lease waits. Stores in trouble are the
    subject of other tests here."""
    if "s3_faults" not in request.fixturenames:
        monkeypatch.setattr(lease_module, "PATIENCE_S", 60.0)


def alive(**changes: object) -> bytes:
    """The word of a driver elsewhere."""
    lease = {"driver": "x", "host": "elsewhere", "pid": 1, "renewed_at": time.time(), "ended": False}
    return json.dumps(lease | changes).encode()


def test_a_second_driver_is_refused_until_the_first_has_ended(storage: Storage, folder: str) -> None:
    """And told who it is."""
    with Lease(Output(storage, folder)), pytest.raises(RefusedError, match="another driver is using"):
        Lease(Output(storage, folder)).__enter__()

    with Lease(Output(storage, folder)):
        lease = read_lease(Output(storage, folder))

    assert lease is not None
    assert not lease.ended


def test_a_driver_that_was_succeeded_stops_and_leaves_the_lease_alone(storage: Storage, folder: str) -> None:
    """It was suspended for longer than its lease holds, say."""
    with Lease(Output(storage, folder)) as late:
        age(storage, folder, VALID_S + 1)
        with Lease(Output(storage, folder)):
            successor = storage.read(join(folder, LEASE))
            with pytest.raises(RefusedError, match="another driver has taken over"):
                late.confirm(TALLY)

    ended = json.loads(storage.read(join(folder, LEASE)))
    assert ended["driver"] == json.loads(successor)["driver"]
    assert ended["ended"]


def test_a_driver_on_another_host_is_not_looked_up_here(storage: Storage, folder: str) -> None:
    """No process of this host has its number, and that says nothing about the other host."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    storage.replace(join(folder, LEASE), alive(pid=ended.pid))

    with pytest.raises(RefusedError, match=f"another driver is using .* process {ended.pid} on elsewhere"):
        Lease(Output(storage, folder)).__enter__()


def test_a_driver_that_was_killed_on_this_host_is_succeeded_at_once(tmp_path: Path) -> None:
    """Nobody waits for the end of its lease: the process is gone."""
    killed = subprocess.Popen(["true"])
    killed.wait()
    (tmp_path / LEASE).parent.mkdir()
    (tmp_path / LEASE).write_bytes(alive(host=socket.gethostname(), pid=killed.pid))

    with Lease(open_output(str(tmp_path))):
        lease = read_lease(open_output(str(tmp_path)))

    assert lease is not None
    assert lease.pid == os.getpid()


@pytest.mark.parametrize("error", [None, PermissionError])
def test_a_driver_that_lives_on_this_host_is_not_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError] | None
) -> None:
    """Also one of another user, to whose process no signal can be sent."""

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (os.getppid(), 0)
        if error:
            raise error

    monkeypatch.setattr(os, "kill", kill)
    (tmp_path / LEASE).parent.mkdir()
    (tmp_path / LEASE).write_bytes(alive(host=socket.gethostname(), pid=os.getppid()))

    with pytest.raises(RefusedError, match="another driver is using"):
        Lease(open_output(str(tmp_path))).__enter__()


class Overtaken(LocalStorage):
    """A disk on which another driver writes its lease just before this driver's step of that number."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(temp_dir=str(folder / "tmp"))
        self._steps_left = step

    def _step(self, uri: str) -> None:
        self._steps_left -= 1
        if self._steps_left == 0:
            self.replace(uri, alive())

    def stat(self, uri: str) -> StoredObject | None:
        self._step(uri)
        return super().stat(uri)

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        self._step(uri)
        return super().read(uri, max_bytes)

    def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
        self._step(uri)
        return super().create(uri, data, metadata)

    def exchange(self, uri: str, data: Buffer, metadata: Mapping[str, str], *, etag: str) -> bool:
        self._step(uri)
        return super().exchange(uri, data, metadata, etag=etag)


@pytest.mark.parametrize("before", [None, alive(ended=True)], ids=["first", "successor"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_of_two_drivers_that_start_at_once_one_is_refused(
    tmp_path: Path, before: bytes | None, step: int
) -> None:
    """Whichever of its steps the other one overtakes: it looks, reads, and writes."""
    if before:
        (tmp_path / LEASE).parent.mkdir()
        (tmp_path / LEASE).write_bytes(before)

    with pytest.raises(RefusedError, match=r"another driver is using .* on elsewhere"):
        Lease(Output(Overtaken(tmp_path, step), str(tmp_path))).__enter__()

    lease = read_lease(open_output(str(tmp_path)))
    assert lease is not None
    assert lease.host == "elsewhere"


def test_a_driver_that_was_succeeded_stops_at_its_next_renewal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not go on until it has finished."""
    output = open_output(str(tmp_path))
    monkeypatch.setattr(lease_module, "RENEW_EVERY_S", 0.05)
    with Lease(output) as late:
        output.replace(LEASE, alive())

        with pytest.raises(RefusedError, match=r"another driver has taken over .* process 1 on elsewhere"):
            wait_until(lambda: late.update(TALLY) is not None)


def test_a_lease_is_renewed_whatever_its_driver_is_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end, for example, it reads all parts. A renewal has the latest progress."""
    monkeypatch.setattr(lease_module, "RENEW_EVERY_S", 0.05)
    output = open_output(str(tmp_path))
    seen = set()

    def renewed(num: int) -> bool:
        seen.add(read_lease(output))
        return len(seen) > num

    with Lease(output) as held:
        wait_until(lambda: renewed(3))
        held.update(Tally(rows_total=9, rows_before=7))
        num_before = len(seen) + 1
        wait_until(lambda: renewed(num_before))
        last = read_lease(output)

    assert last is not None
    assert last.rows_done == 7
    assert not {thread.name for thread in threading.enumerate()} & {"lease"}


def test_a_lease_outlives_two_renewals_that_fail() -> None:
    """Each of which is tried for a while."""
    assert 3 * (RENEW_EVERY_S + PATIENCE_S) < VALID_S
    assert 2 * RENEW_EVERY_S + PATIENCE_S < WATCH_S


def test_a_late_renewal_does_not_revive_a_lease_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver ends its lease when the last renewal is written or given up."""
    under_way, ending, renew = Event(), Event(), Lease._renew

    def renew_late(self: Lease, state: dict[str, Any]) -> None:
        if threading.current_thread().name == "lease" and not under_way.is_set():
            under_way.set()
            assert ending.wait(20)
            time.sleep(0.2)  # the end would be written now, if it did not wait
        renew(self, state)

    monkeypatch.setattr(Lease, "_renew", renew_late)
    monkeypatch.setattr(lease_module, "RENEW_EVERY_S", 0.01)

    with Lease(open_output(str(tmp_path))):
        assert under_way.wait(20)
        ending.set()

    for thread in threading.enumerate():
        if thread.name == "lease":
            thread.join()
    ended = read_lease(open_output(str(tmp_path)))
    assert ended is not None
    assert ended.ended


@pytest.mark.parametrize("ahead_s", [3_600, -VALID_S - 1, -3_600])
@pytest.mark.parametrize("lives", [True, False])
def test_of_a_machine_whose_clock_is_wrong_only_a_change_shows_that_its_driver_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float, lives: bool
) -> None:
    """One ahead must not block an output for ever, and one behind must not lose its job."""
    output = open_output(str(tmp_path))
    output.replace(LEASE, alive(renewed_at=time.time() + ahead_s))
    waits = QuickWaits(monkeypatch)
    read = LocalStorage.read

    def renew_and_read(self: LocalStorage, uri: str, max_bytes: int | None = None) -> bytes:
        if lives and sum(waits.seconds) >= RENEW_EVERY_S:
            output.replace(LEASE, alive(renewed_at=time.time() + ahead_s + sum(waits.seconds)))
        return read(self, uri, max_bytes)

    monkeypatch.setattr(LocalStorage, "read", renew_and_read)

    if lives:
        with pytest.raises(RefusedError, match="another driver is using"):
            Lease(output).__enter__()
        assert sum(waits.seconds) <= RENEW_EVERY_S + 1
    else:
        with Lease(output):
            assert sum(waits.seconds) == pytest.approx(WATCH_S, abs=1)


def test_a_driver_that_ends_does_not_wait_for_a_store_in_trouble(
    s3_faults: FaultProxy, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the storage's deadline, Ctrl-C ends a job within seconds; the lease runs out by itself."""
    with Lease(open_output(s3_folder, deadline_s=900)):
        s3_faults.inject("503", method="PUT", key=LEASE, count=10_000)
        waits = QuickWaits(monkeypatch)

    assert 0 < sum(waits.seconds) <= PATIENCE_S


def test_a_lease_tells_how_far_its_driver_is(storage: Storage, folder: str) -> None:
    """Status reads it on any machine."""
    tally = Tally(rows_total=10, rows_before=2, rows=3, images=4, workers=WorkersNow(num_workers=5))

    with Lease(Output(storage, folder)) as lease:
        before = read_lease(Output(storage, folder))
        lease.confirm(tally)
        after = read_lease(Output(storage, folder))

    assert before is not None
    assert after is not None
    assert before.rows_done is None
    assert (after.rows_done, after.workers, after.ended) == (5, 5, False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"driver": ',
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        {"pid": "x"},
        {"pid": 0},
        {"pid": 10**30},
        {"renewed_at": "now"},
        {"renewed_at": float("nan")},
        {"ended": None},
    ],
)
def test_a_lease_that_cannot_be_read_does_not_keep_a_driver_out(
    tmp_path: Path, content: bytes | dict[str, object]
) -> None:
    """Half a file, of a disk that was full, or what nobody's darkroom has written."""
    folder = str(tmp_path)
    storage = open_storage(folder)
    storage.replace(join(folder, LEASE), content if isinstance(content, bytes) else alive(**content))

    assert read_lease(Output(storage, folder)) is None
    with Lease(Output(storage, folder)) as lease:
        lease.confirm(TALLY)

        assert read_lease(Output(storage, folder)) is not None


def test_a_lease_that_is_no_file_refuses_the_output(tmp_path: Path) -> None:
    """It can be neither read nor written: no driver tries for ever."""
    folder = str(tmp_path)
    (tmp_path / LEASE).mkdir(parents=True)

    with pytest.raises(RefusedError, match=r"driver\.json is a folder, not a file; move it away"):
        Lease(open_output(folder)).__enter__()


def test_a_lease_is_taken_through_a_store_in_trouble(
    s3_faults: FaultProxy, faulty: Storage, s3_folder: str
) -> None:
    """The reply to its creation is lost: the repetition meets it, and it is its own."""
    s3_faults.inject("lost_reply", method="PUT")

    with Lease(Output(faulty, s3_folder)):
        lease = read_lease(Output(faulty, s3_folder))

    assert lease is not None
    assert not lease.ended


def age(storage: Storage, folder: str, seconds: float) -> None:
    """Make the last word of a driver so much older."""
    lease = json.loads(storage.read(join(folder, LEASE)))
    lease["renewed_at"] -= seconds
    storage.replace(join(folder, LEASE), json.dumps(lease).encode())
