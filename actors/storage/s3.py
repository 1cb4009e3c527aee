"""S3, and other stores with the same API.

s3fs is used only to build a client from the environment, and for its event loop. Requests go straight to the
aiobotocore client, because s3fs 2026.9 gives up after 42 s of 503, turns the status codes that decide a
commit into various OSErrors, and waits for ever for a server that stops reading.
"""

import asyncio
import io
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, unquote

import aiohttp
import s3fs
from aiobotocore.httpsession import AIOHTTPSession

from actors.storage.objects import (
    IN_PIECES_FROM_BYTES,
    MAX_PUT_BYTES,
    Buffer,
    ListedObject,
    StoredObject,
    Tail,
    refuse_larger,
)
from actors.storage.pieces import HASTY_STORES, drop_all, one_wins, uploaded
from actors.storage.retries import repeat
from actors.storage.s3_errors import (
    FOREIGN_ERRORS,
    ChangedError,
    EmptyRangeError,
    PreconditionError,
    UploadGoneError,
    converted_error,
    trouble_of,
)
from actors.storage.uris import S3_SCHEME
from schemas.errors import DarkroomError, RefusedError, SpecError, StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

logger = logging.getLogger(__name__)

SLOWEST_UPLOAD_BYTES_PER_S = 4 * 2**20
"""One try of an upload may take `timeout_s`, and the time that its bytes need at this rate."""
BLOCK_BYTES = 4 * 2**20
"""The size of the blocks in which an open file reads."""
TAIL_BYTES = 64 * 2**10
"""The end of a file, which is a block of its own: readers of a Parquet footer need no more."""
CACHED_BLOCKS = 8
"""The most blocks that an open file has in memory. Parquet readers jump between a few columns."""
MAX_RANGE_BYTES = 32 * 2**20
"""The longest reply that is read, so that one try of it needs less than `timeout_s`."""
MAX_CHANGES = 10
"""How often an object may change while it is read as a whole."""

MAX_WRONG_ANSWERS = 10
"""How often a store may wrongly say that the condition of a write is not met."""
MAX_UPLOADS = 3
"""How often the pieces of an object are uploaded, if the store loses them."""
FOR_THE_STORE_ALONE = ("authorization", "if-match", "x-amz-")
"""How the names of headers begin that are secret, or that another host cannot judge."""


class S3Storage:
    """Objects in buckets. Every request is repeated until it is answered or `deadline_s` has passed."""

    def __init__(self, *, timeout_s: float, deadline_s: float, in_pieces: bool | None = None) -> None:
        """`in_pieces`: what `takes_pieces` has found out about the store, or None."""
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._in_pieces = in_pieces
        self._fs: Any = s3fs.S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": min(10.0, timeout_s),
                "read_timeout": timeout_s,
                "max_pool_connections": 32,
                "retries": {"total_max_attempts": 1},
                "http_session_cls": RedirectedSession,
            },
        )

    def list(self, prefix: str) -> Iterator[StoredObject]:
        # Not every store sorts by whole keys: SeaweedFS lists `a/c` before `a-b`.
        return iter(sorted(self._list_pages(prefix), key=lambda stored: stored.uri))

    def list_sizes(self, prefix: str) -> Iterator[ListedObject]:
        return self._list_pages(prefix)

    def _list_pages(self, folder: str) -> Iterator[StoredObject]:
        bucket, key = _split(folder)
        arguments = {"Bucket": bucket, "Prefix": _prefix(key)}
        while True:
            page = self._call("list_objects_v2", folder, arguments)
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    yield _stored_object(f"{S3_SCHEME}{bucket}/{entry['Key']}", entry["Size"], entry["ETag"])
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def stat(self, uri: str) -> StoredObject | None:
        try:
            head = self._head(uri)
        except FileNotFoundError:
            return None
        if "ETag" not in head:
            raise RefusedError(f"{uri}: the store names no ETag, by which darkroom knows objects again")
        return _stored_object(uri, head["ContentLength"], head["ETag"])

    def _existing(self, uri: str) -> StoredObject:
        """What is known of one object; FileNotFoundError where there is none."""
        stored = self.stat(uri)
        if stored is None:
            raise FileNotFoundError(uri)
        return stored

    def content_hash(self, uri: str, beat: Callable[[], None] = lambda: None) -> str:
        return ""

    def open(self, uri: str) -> BinaryIO:
        return io.BufferedReader(S3File(self, self._existing(uri)), buffer_size=64 * 1024)

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        for _ in range(MAX_CHANGES):
            reply = self._call("get_object", uri, _address(uri))
            refuse_larger(uri, int(reply["ContentLength"]), max_bytes)
            if reply["Body"] is not None:
                return bytes(reply["Body"])
            with suppress(ChangedError):
                return b"".join(self._ranges(self._existing(uri)))
        raise StorageError(f"{uri}: changed {MAX_CHANGES} times while it was being read")

    def _ranges(self, stored: StoredObject) -> Iterator[bytes]:
        """All bytes of an object in order, as long as it is the one that `stored` describes."""
        for start in range(0, stored.size_bytes, MAX_RANGE_BYTES):
            yield self.read_range(stored, start, min(start + MAX_RANGE_BYTES, stored.size_bytes))

    def read_tail(self, uri: str, num_bytes: int) -> Tail:
        try:
            reply = self._call("get_object", uri, {**_address(uri), "Range": f"bytes=-{num_bytes}"})
        except EmptyRangeError:  # S3's answer for an empty object
            return Tail(data=b"", size_bytes=0)
        # A store that knows no ranges sends the whole object.
        size_bytes = int(reply.get("ContentRange", "").rpartition("/")[2] or reply["ContentLength"])
        data = _body(uri, reply)[-num_bytes:]
        if len(data) != min(num_bytes, size_bytes):
            raise StorageError(f"{uri}: asked for the last {num_bytes} bytes, got {len(data)} bytes")
        return Tail(data=data, size_bytes=size_bytes)

    def read_range(self, stored: StoredObject, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of an object; ChangedError if it has changed since `stored` was made."""
        arguments = {
            **_address(stored.uri),
            "Range": f"bytes={start}-{stop - 1}",
            "IfMatch": f'"{stored.etag}"',
        }
        try:
            reply = self._call("get_object", stored.uri, arguments)
        except (PreconditionError, EmptyRangeError) as error:
            raise ChangedError(stored.uri) from error
        # Some stores do not look at the condition of a read, and some have another host answer it.
        current = reply["ETag"].strip('"') if "ETag" in reply else self._etag(stored.uri)
        if current != stored.etag:
            raise ChangedError(stored.uri)
        body = _body(stored.uri, reply)
        if len(body) != stop - start:
            raise StorageError(f"{stored.uri}: asked for bytes {start} to {stop}, got {len(body)} bytes")
        return body

    def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
        return self._put_if(uri, data, metadata, None)

    def exchange(self, uri: str, data: Buffer, metadata: Mapping[str, str], *, etag: str) -> bool:
        return self._put_if(uri, data, metadata, etag)

    def _put_if(self, uri: str, data: Buffer, metadata: Mapping[str, str], etag: str | None) -> bool:
        """Write the object; False where the condition is not met.

        The condition: the present object has this etag or, for None, there is no object.
        """
        size = memoryview(data).nbytes
        if size > IN_PIECES_FROM_BYTES and self._in_pieces:
            return self._upload_if(uri, data, metadata, etag)
        if size > MAX_PUT_BYTES:
            raise SpecError(
                f"{uri}: the part has {size / 2**30:.1f} GiB, and this store takes at most "
                f"{MAX_PUT_BYTES / 2**30:.0f} GiB, because it cannot be trusted with a conditional upload in "
                "pieces; lower batching.shard_rows"
            )
        return self._write_if(uri, partial(self._put, uri, data, Metadata=_ascii(metadata)), etag)

    def _upload_if(self, uri: str, data: Buffer, metadata: Mapping[str, str], etag: str | None) -> bool:
        """What `_put_if` does, in pieces."""
        for _ in range(MAX_UPLOADS):
            with (
                suppress(UploadGoneError),
                uploaded(self._call, uri, _address(uri), data, _ascii(metadata)) as complete,
            ):
                return self._write_if(uri, complete, etag)
            if not self._has_etag(uri, etag):
                return False  # An upload is gone, too, after it was completed and the reply lost.
        raise StorageError(f"{uri}: its pieces were lost {MAX_UPLOADS} times before they could be joined")

    def _write_if(self, uri: str, write: Callable[..., None], etag: str | None) -> bool:
        """Whether `write`, which is called with the condition that `_put_if` describes, has done it."""
        for _ in range(MAX_WRONG_ANSWERS):
            try:
                write(**_condition(etag))
                return True
            except (PreconditionError, FileNotFoundError):
                # A gateway or a stale copy can answer wrongly: the answer counts only if `stat` confirms it.
                if not self._has_etag(uri, etag):
                    return False
        raise StorageError(
            f"{uri}: the store refused {MAX_WRONG_ANSWERS} times to write it because it exists already or "
            "has changed (412), which is not true"
        )

    def _has_etag(self, uri: str, etag: str | None) -> bool:
        """Whether the object has this etag or, for None, does not exist."""
        return self._etag(uri) == etag

    def _etag(self, uri: str) -> str | None:
        """The ETag that the object has now; None if it does not exist."""
        stored = self.stat(uri)
        return stored.etag if stored else None

    def takes_pieces(self, uri: str) -> bool:
        if self._in_pieces is None:
            try:
                try:
                    self._in_pieces = self._keeps_conditions(uri)
                finally:
                    self.delete(uri)
            except (DarkroomError, FileNotFoundError, UploadGoneError) as error:
                logger.warning("objects are not uploaded in pieces: %s", error)
                self._in_pieces = False
        return self._in_pieces

    def _keeps_conditions(self, uri: str) -> bool:
        """Whether the store completes no upload whose condition is not met; `uri` is a new name."""
        first, second = b"first", b"second"
        self.create(uri, first, {})
        headers = self._head(uri)["ResponseMetadata"]["HTTPHeaders"]
        if headers.get("server", "").startswith(HASTY_STORES):
            return False
        for untrue in (_condition(None), _condition("0" * 32)):
            with uploaded(self._call, uri, _address(uri), second, {}) as complete:
                try:
                    complete(**untrue)
                except PreconditionError:
                    continue
                return False
        if self.read(uri) != first:
            return False
        self.delete(uri)
        return one_wins(self._call, uri, _address(uri))

    def drop_unfinished(self, folder: str) -> None:
        bucket, key = _split(folder)
        drop_all(self._call, folder, bucket, _prefix(key))

    def metadata(self, uri: str) -> dict[str, str]:
        return {name.lower(): unquote(value) for name, value in self._head(uri).get("Metadata", {}).items()}

    def replace(self, uri: str, data: bytes) -> None:
        self._put(uri, data)

    def delete(self, uri: str) -> None:
        with suppress(FileNotFoundError):
            self._call("delete_object", uri, _address(uri))

    def _head(self, uri: str) -> dict[str, Any]:
        return self._call("head_object", uri, _address(uri))

    def _put(self, uri: str, data: Buffer, **headers: Any) -> None:
        body = data if isinstance(data, bytes) else bytes(data)
        self._call("put_object", uri, {**_address(uri), "Body": body, **headers}, num_bytes=len(body))

    def _call(
        self,
        operation: str,
        uri: str,
        arguments: Mapping[str, Any],
        *,
        num_bytes: int = 0,
        deadline_s: float | None = None,
    ) -> dict[str, Any]:
        """The reply to a request, after as many tries as it takes; a body that is too long is None.

        FileNotFoundError where the object does not exist, PreconditionError for a 412, UploadGoneError for
        an upload that has to be begun again; StorageError at the deadline, or at once if another try cannot
        help.
        """
        deadline_s = min(deadline_s or self._deadline_s, self._deadline_s)
        deadline = time.monotonic() + deadline_s
        timeout_s = self._timeout_s + num_bytes / SLOWEST_UPLOAD_BYTES_PER_S

        def try_once() -> dict[str, Any]:
            left_s = max(0.001, deadline - time.monotonic())
            return self._try(self._request(operation, arguments), min(timeout_s, left_s))

        try:
            return repeat(try_once, f"{operation} {uri}", trouble_of=trouble_of, deadline_s=deadline_s)
        except FOREIGN_ERRORS as error:
            raise converted_error(operation, uri, error, deadline_s) from error

    def _try(self, request: Coroutine[Any, Any, dict[str, Any]], timeout_s: float) -> dict[str, Any]:
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(request, timeout_s), self._fs.loop)
        try:
            return future.result()
        finally:
            # After an interrupt the request would otherwise go on.
            future.cancel()

    async def _request(self, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        client = await self._fs.set_session()
        reply: dict[str, Any] = await getattr(client, operation)(**arguments)
        if "Body" in reply:
            async with reply["Body"] as body:
                is_short = int(reply["ContentLength"]) <= MAX_RANGE_BYTES
                reply["Body"] = await body.read() if is_short else None
        return reply


class RedirectedSession(AIOHTTPSession):  # type: ignore[misc] # it has no types
    """The HTTP session of an S3 client, in which a redirect tells the next address nothing secret.

    The session of aiobotocore 3.10 follows redirects, and aiohttp 3.14 takes away only `Authorization`: a
    session token would go to another host.
    """

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        if not session.trace_configs:
            trace = aiohttp.TraceConfig()
            trace.on_request_redirect.append(_forget)
            trace.freeze()
            session.trace_configs.append(trace)
        return session

    async def send(self, request: Any) -> Any:
        """The reply; without an ETag after a redirect, because another host's ETags are not the store's."""
        reply = await super().send(request)
        if reply.raw.history:
            reply.headers.pop("etag", None)
        return reply


async def _forget(
    session: aiohttp.ClientSession, context: Any, redirect: aiohttp.TraceRequestRedirectParams
) -> None:
    """Take away the headers that are for the store alone; the next request has those that are left."""
    for name in {*redirect.headers}:
        if name.lower().startswith(FOR_THE_STORE_ALONE):
            del redirect.headers[name]


class S3File(io.RawIOBase):
    """An object as a readable file. It sends ranged GETs and has a cache of a few aligned blocks."""

    def __init__(self, storage: S3Storage, stored: StoredObject) -> None:
        self._storage = storage
        self._stored = stored
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stored.size_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"{self._stored.uri}: cannot seek to {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._stored.size_bytes - self._position)
        if size <= 0:
            return 0
        data = self._fetch(size) if size > BLOCK_BYTES else self._from_block(size)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetch(self, size: int) -> bytes:
        return self._storage.read_range(
            self._stored, self._position, self._position + min(size, MAX_RANGE_BYTES)
        )

    def _from_block(self, size: int) -> memoryview:
        """At most `size` bytes, from the block at the current position. BufferedReader asks for the rest."""
        start = self._position - self._position % BLOCK_BYTES
        tail = self._stored.size_bytes - TAIL_BYTES
        if start not in self._blocks and self._position >= tail:
            start = max(start, tail)
        offset = self._position - start
        return memoryview(self._block(start))[offset : offset + size]

    def _block(self, start: int) -> bytes:
        """The block that begins at `start`, and ends at the next multiple of BLOCK_BYTES."""
        if start not in self._blocks:
            stop = min(start - start % BLOCK_BYTES + BLOCK_BYTES, self._stored.size_bytes)
            if len(self._blocks) == CACHED_BLOCKS:
                self._blocks.popitem(last=False)
            self._blocks[start] = self._storage.read_range(self._stored, start, stop)
        self._blocks.move_to_end(start)
        return self._blocks[start]


def _split(uri: str) -> tuple[str, str]:
    """(bucket, key) of a URI."""
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    return bucket, key


def _prefix(key: str) -> str:
    """How the keys of all objects below a folder begin."""
    return f"{key.rstrip('/')}/" if key else ""


def _condition(etag: str | None) -> dict[str, str]:
    """The condition that the object has this etag or, for None, does not exist."""
    return {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}


def _body(uri: str, reply: Mapping[str, Any]) -> bytes:
    """The body of a reply; StorageError where it was too long to be read, as from a store without ranges."""
    if reply["Body"] is None:
        raise StorageError(
            f"{uri}: asked for a range of at most {MAX_RANGE_BYTES:,} bytes, and the store answered with "
            f"{int(reply['ContentLength']):,} bytes"
        )
    return bytes(reply["Body"])


def _address(uri: str) -> dict[str, str]:
    bucket, key = _split(uri)
    return {"Bucket": bucket, "Key": key}


def _stored_object(uri: str, size_bytes: int, etag: str) -> StoredObject:
    return StoredObject(uri=uri, size_bytes=size_bytes, etag=etag.strip('"'))


def _ascii(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata with its values percent-encoded: it travels in headers, which are ASCII."""
    return {name: quote(value, safe="/:=,@+") for name, value in metadata.items()}
