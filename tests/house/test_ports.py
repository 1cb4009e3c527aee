"""Facts about the ports that servers in tests get."""

import socket
from pathlib import Path

import pytest

from tests.support import running
from tests.support.running import free_ports

RAYS_WORKERS = range(10_002, 20_000)
"""The ports that Ray gives its workers."""


def ports_of(worker: int, count: int, *, num_workers: int = 3) -> list[int]:
    """What a pytest process among several gets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
        patch.setenv("PYTEST_XDIST_WORKER_COUNT", str(num_workers))
        return free_ports(count)


def test_no_two_processes_get_one_port_and_none_gets_it_twice() -> None:
    """A server may begin to listen long after its port was chosen."""
    given = [port for worker in (0, 1, 2, 0) for port in ports_of(worker, 150)]

    assert len(given) == len({*given}) == 600


def test_a_port_is_none_that_anybody_gets_by_chance() -> None:
    """Neither a connection nor a worker of Ray's; nor is the port for gRPC that belongs to it."""
    begin, end = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    by_chance = {*RAYS_WORKERS, *range(begin, end + 1)}

    ports = ports_of(1, 100)

    assert not by_chance & {*ports, *(port + 10_000 for port in ports)}


@pytest.mark.parametrize("twin", [0, 10_000])
def test_a_port_that_is_in_use_is_not_given(twin: int) -> None:
    """Nor one whose port for gRPC is. Among so many processes, each has but one port to choose from."""
    worker = next(number for number in range(2_767, 0, -1) if 20_000 + number not in running._given)

    server = socket.create_server(("127.0.0.1", 20_000 + worker + twin))
    with server, pytest.raises(AssertionError, match="too few"):
        ports_of(worker, 1, num_workers=2_768)

    assert ports_of(worker, 1, num_workers=2_768) == [20_000 + worker]
