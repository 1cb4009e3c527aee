"""A small HTTP proxy between a client and a store, which injects the faults of networks and stores.

It forwards the Host header unchanged, so signatures for the proxy's address stay valid at the store. Each
connection has one request: that is simple, and a broken connection never affects another request.
"""

import asyncio
import itertools
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

_Refusal = Literal["500", "503", "404", "409", "412"]
_Trouble = Literal["lie", "reset", "lost_reply", "hang", "hold", "delay", "truncate", "corrupt"]
FaultKind = _Refusal | _Trouble
"""What happens to a request:

500, 503: the store does not get the request; the client gets InternalError, SlowDown
404, 409, 412: the store does not get the request; the client gets NoSuchKey, ConditionalRequestConflict,
    PreconditionFailed
lie: the store's 412 becomes 200, as at a store that ignores If-None-Match
reset: the connection breaks before the store gets the request
lost_reply: the store carries out the request; the connection breaks before the client gets the reply
hang: the request is read and never answered
hold: the store gets the request only after `release`, even if the client has long gone by then
delay: the store carries out the request, and the client gets the reply DELAY_S later
truncate: the connection ends in the middle of the reply's body
corrupt: one bit of the reply's body is flipped
"""

_REPLIES = {
    "500": (b"500 Internal Server Error", b"InternalError"),
    "503": (b"503 Service Unavailable", b"SlowDown"),
    "404": (b"404 Not Found", b"NoSuchKey"),
    "409": (b"409 Conflict", b"ConditionalRequestConflict"),
    "412": (b"412 Precondition Failed", b"PreconditionFailed"),
}

DELAY_S = 0.3
"""Much longer than a request to a store on this machine takes."""
POLL_S = 0.02

STORM: dict[str, tuple[FaultKind, ...]] = {
    "PUT": ("500", "503", "reset", "lost_reply", "delay", "409", "412"),
    "GET": ("500", "503", "reset", "delay", "truncate"),
    "HEAD": ("500", "503", "reset", "delay"),
    "DELETE": ("500", "503", "reset", "lost_reply"),
    "POST": ("500", "503", "reset", "lost_reply", "delay"),
}
"""The faults of a bad network and a failing store, by the method of the request.

The faults of PUT are those of conditional requests.
"""


@dataclass(slots=True, kw_only=True)
class Fault:
    """One kind of fault that happens to the next `count` matching requests."""

    kind: FaultKind
    method: str
    key: str
    """A part of the request's path."""
    count: int


@dataclass(slots=True, kw_only=True)
class Storm:
    """Faults at random."""

    rate: float
    """The share of requests that go wrong."""
    random: random.Random
    kinds: dict[str, Iterator[FaultKind]] = field(
        default_factory=lambda: {method: itertools.cycle(kinds) for method, kinds in STORM.items()}
    )
    """The next faults for each method: all kinds in turn, so that even a short storm has all of them."""


@dataclass(slots=True, kw_only=True)
class FaultProxy:
    """The proxy as a test sees it: its address, the faults to inject, and the requests that it got."""

    target: str
    """The URL of the store."""
    port: int = 0
    requests: list[str] = field(default_factory=list)
    """`METHOD /path` of every request, in the order of arrival."""
    answers: list[str] = field(default_factory=list)
    """`METHOD /path STATUS` of every request that the store has answered, even if the client got no reply."""
    bytes_sent: int = 0
    """The length of all replies that clients got."""
    faults: list[Fault] = field(default_factory=list)
    storm: Storm | None = None
    injected: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault was injected."""
    orderly: bool = False
    """Whether uploads in pieces are completed one after the other, and the store has no name.

    SeaweedFS 4.48 lets several win a race.
    """
    _completing: asyncio.Lock = field(default_factory=asyncio.Lock)
    holding: bool = False
    """Whether requests with the fault `hold` are still held back."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def inject(self, kind: FaultKind, *, method: str, key: str = "", count: int = 1) -> None:
        """Inject `kind` into the next `count` requests of this method whose path contains `key`."""
        self.holding |= kind == "hold"
        self.faults.append(Fault(kind=kind, method=method, key=key, count=count))

    def release(self) -> None:
        """Send the requests that are held back to the store."""
        self.holding = False

    def break_by_chance(self, rate: float, seed: int) -> None:
        """From now on, inject a fault of STORM into this share of all requests."""
        self.storm = Storm(rate=rate, random=random.Random(seed))

    def calm(self) -> None:
        """Inject no more faults, and forget all requests."""
        self.release()
        self.storm = None
        self.bytes_sent = 0
        for noted in (self.faults, self.requests, self.answers, self.injected):
            noted.clear()

    def count(self, method: str, key: str = "") -> int:
        """How many requests of this method had `key` in their path."""
        return sum(line.startswith(f"{method} ") and key in line for line in self.requests)

    def _next_fault(self, method: str, path: str, head: bytes) -> FaultKind | None:
        for fault in self.faults:
            if fault.count > 0 and fault.method == method and fault.key in path:
                fault.count -= 1
                return fault.kind
        return self._by_chance(method, head)

    def _by_chance(self, method: str, head: bytes) -> FaultKind | None:
        if self.storm is None or self.storm.random.random() >= self.storm.rate:
            return None
        if method == "PUT" and b"\r\nif-none-match:" not in head.lower():
            # A store never answers an unconditional request that its condition is false.
            method = "DELETE"
        return next(self.storm.kinds[method])


@contextmanager
def serve_fault_proxy(target: str) -> Iterator[FaultProxy]:
    """Run a proxy in front of the store at the URL `target`, in a separate thread."""
    proxy = FaultProxy(target=target)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(proxy, ready, stop)))
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


async def _serve(proxy: FaultProxy, ready: threading.Event, stop: asyncio.Event) -> None:
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_handle(proxy, reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    ready.set()
    await stop.wait()
    server.close()
    for task in connections:
        task.cancel()
    await asyncio.gather(*connections, return_exceptions=True)
    await server.wait_closed()


async def _handle(proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head, body = await _read_request(reader, writer)
        method, path = head.split(b" ", 2)[:2]
        proxy.requests.append(f"{method.decode()} {path.decode()}")
        fault = proxy._next_fault(method.decode(), path.decode(), head)
        if fault:
            proxy.injected[fault] += 1
        reply = await _reply(proxy, fault, head, body)
        if reply is None:
            _reset(writer)
        else:
            proxy.bytes_sent += len(reply)
            writer.write(reply)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # Tests include clients that disconnect in the middle.
    finally:
        writer.close()


async def _reply(proxy: FaultProxy, fault: FaultKind | None, head: bytes, body: bytes) -> bytes | None:
    """The reply that the client gets; None if the connection should break."""
    if fault in _REPLIES:
        return _error_reply(fault)
    if fault == "hang":
        await asyncio.Event().wait()
    if fault == "reset":
        return None
    while fault == "hold" and proxy.holding:
        await asyncio.sleep(POLL_S)
    is_completion = head.startswith(b"POST ") and b"uploadId=" in head.partition(b"\r\n")[0]
    async with proxy._completing if proxy.orderly and is_completion else nullcontext():
        reply = await _forward(proxy.target, head, body)
    if proxy.orderly:
        reply = reply.replace(b"\r\nServer: SeaweedFS", b"\r\nServer: ", 1)
    request = b" ".join(head.split(b" ", 2)[:2] + reply.split(b" ", 2)[1:2])
    proxy.answers.append(request.decode())
    if fault == "lost_reply":
        return None
    if fault == "delay":
        await asyncio.sleep(DELAY_S)
    if fault == "lie" and reply.startswith(b"HTTP/1.1 412 "):
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    if fault == "truncate":
        return reply[:-1]
    if fault == "corrupt":
        return reply[:-1] + bytes([reply[-1] ^ 1])
    return reply


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = [
        line for line in head.split(b"\r\n") if not line.lower().startswith((b"expect:", b"connection:"))
    ]
    if b"\r\nexpect: 100-continue" in head.lower():
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")]
    body = await reader.readexactly(lengths[0]) if lengths else b""
    # The store must close the connection, because that marks the end of its reply.
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]), body


async def _forward(target: str, head: bytes, body: bytes) -> bytes:
    address = urlsplit(target)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(head + body)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()


def _error_reply(kind: str) -> bytes:
    status, code = _REPLIES[kind]
    body = b"<Error><Code>%b</Code><Message>injected</Message></Error>" % code
    return b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close the connection so that the client sees a reset and not an orderly end."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
