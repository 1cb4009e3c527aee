"""Who drives an output: one driver at a time, and the one that is found dead is succeeded."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from actors.storage.objects import Storage
from actors.storage.output import Output, open_output
from actors.storage.stores import open_storage
from actors.storage.uris import join
from jobs.output.lease import VALID_S, Lease, read_lease
from jobs.output.tally import Tally
from schemas.errors import RefusedError
from schemas.output_layout import LEASE
from tests.support.s3.fault_proxy import FaultProxy

TALLY = Tally(rows_total=1, rows_before=0)


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
