"""A gateway in front of the real S3 server, for a store that has the habits of Hugging Face's buckets.

It keeps the conditions of writes, and drops or refuses much else. Every request goes on with a signature of
the gateway's own, because a signature does not survive a header that is taken away.
"""

import http.client
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support.s3.s3_server import ACCESS_KEY, SECRET_KEY

_PASSED_ON = ("range", "if-none-match", "if-match", "content-type")
"""The headers of a request that reach the store, which thus keeps no metadata."""
_CHECKSUMS = ("x-amz-checksum-", "x-amz-sdk-checksum-algorithm", "x-amz-trailer")
_NOT_RETURNED = ("x-amz-meta-", "connection", "content-length", "date", "server", "transfer-encoding")


@dataclass(slots=True, kw_only=True)
class BucketGateway:
    """The gateway as a test sees it: its address, its habits, and what it and the other host were asked."""

    target: str
    """The URL of the store."""
    url: str = ""
    other_url: str = ""
    """The other host, which serves an object to whoever has its address."""
    redirects: Mapping[str, int] = field(default_factory=lambda: {"GET": 2})
    """By method: of this many requests for objects, one is sent to the other host."""
    keeps_if_match: bool = True
    """Whether a write with `If-Match` is refused where the object has another ETag."""
    refused: list[str] = field(default_factory=list)
    """`METHOD /path: why` of every request that was refused here."""
    redirected: list[Mapping[str, str]] = field(default_factory=list)
    """The headers of all requests that came to the other host, with names in small letters."""
    _turns: Iterator[int] = field(default_factory=itertools.count)

    def is_redirected(self, method: str, path: str) -> bool:
        """Whether this request for an object is sent to the other host."""
        every = self.redirects.get(method, 0)
        return bool(every and urlsplit(path).path.count("/") > 1 and next(self._turns) % every == 0)

    def refusal(self, method: str, path: str, headers: Mapping[str, str]) -> str:
        """Why the gateway refuses a request; empty where it does not."""
        if "authorization" not in headers:
            return "no signature"
        if any(name.startswith(_CHECKSUMS) for name in headers):
            return "checksums are not known here"
        parts = urlsplit(path)
        query = parse_qs(parts.query, keep_blank_values=True)
        is_listing = method == "GET" and parts.path.strip("/").count("/") == 0 and "uploads" not in query
        return "only ListObjectsV2 is known here" if is_listing and query.get("list-type") != ["2"] else ""


@contextmanager
def serve_bucket_gateway(target: str) -> Iterator[BucketGateway]:
    """Run a gateway to the store at the URL `target`, and the other host, in threads of their own."""
    gateway = BucketGateway(target=target)
    with ExitStack() as servers:
        gateway.url = servers.enter_context(_serving(gateway, _Gateway))
        gateway.other_url = servers.enter_context(_serving(gateway, _OtherHost))
        yield gateway


@contextmanager
def _serving(gateway: BucketGateway, kind: "type[_Handler]") -> Iterator[str]:
    """The URL of a server whose requests this kind of handler answers."""
    handler = type(kind.__name__, (kind,), {"gateway": gateway})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """What both hosts do: read a request, ask the store, and answer."""

    gateway: BucketGateway
    protocol_version = "HTTP/1.1"
    timeout = 20

    def __getattr__(self, name: str) -> Callable[[], None]:
        """The answer to any method: `do_GET` and the like are looked up by name."""
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True  # The client has gone.

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        self._answer_to(headers, body)

    def _answer_to(self, headers: dict[str, str], body: bytes) -> None:
        raise NotImplementedError

    def _ask_store(self, headers: Mapping[str, str], body: bytes, **changes: str) -> None:
        """Answer as the store does, to a request with those headers that it may see."""
        passed = {name: value for name, value in headers.items() if name in _PASSED_ON}
        signed = AWSRequest(self.command, self.gateway.target + self.path, headers=passed, data=body)
        S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1").add_auth(signed)
        connection = http.client.HTTPConnection(urlsplit(self.gateway.target).netloc, timeout=60)
        try:
            connection.request(self.command, self.path, body=body, headers=dict(signed.headers.items()))
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        kept = {name.lower(): value for name, value in reply.getheaders()}
        length = kept.get("content-length", "0") if self.command == "HEAD" else str(len(content))
        kept = {name: value for name, value in kept.items() if not name.startswith(_NOT_RETURNED)}
        self._send(reply.status, kept | changes | {"content-length": length}, content)

    def _send(self, status: int, headers: Mapping[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.gateway.refused.append(f"{self.command} {self.path}: {message}")
        content = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self._send(status, {"content-length": str(len(content))}, b"" if self.command == "HEAD" else content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


class _Gateway(_Handler):
    def _answer_to(self, headers: dict[str, str], body: bytes) -> None:
        if message := self.gateway.refusal(self.command, self.path, headers):
            self._refuse(400, "InvalidRequest", message)
        elif self.gateway.is_redirected(self.command, self.path):
            self._send(302, {"location": self.gateway.other_url + self.path, "content-length": "0"})
        else:
            if self.command == "GET" or not self.gateway.keeps_if_match:
                headers.pop("if-match", None)
            self._ask_store(headers, body)


class _OtherHost(_Handler):
    """Serves objects, under ETags of its own."""

    def _answer_to(self, headers: dict[str, str], body: bytes) -> None:
        self.gateway.redirected.append(headers)
        self._ask_store({name: headers[name] for name in ("range",) if name in headers}, body, etag='"other"')
