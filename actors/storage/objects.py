"""The storage of inputs and outputs, as one small interface.

Everything else rests on `create`: it writes a whole object or nothing, and exactly one of any number of
writers of a URI is told that it has written the object.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from schemas.errors import RefusedError

MAX_PUT_BYTES = 5 * 2**30
"""The size of the largest object that S3 takes in one request."""
IN_PIECES_FROM_BYTES = 512 * 2**20
"""The size from which an object is uploaded to S3 in pieces, if the store can be trusted with that.

One request for more could not often be repeated before the deadline.
"""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedObject:
    """What every listing says about one object."""

    uri: str
    """Normalised: `s3://bucket/key` or an absolute local path."""
    size_bytes: int
    """Length of the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject(ListedObject):
    """What is known of one object without its content."""

    etag: str
    """A tag that changes when the content does (on a disk: when its ends do). It can be compared only within
    one kind of store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The end of an object."""

    data: bytes
    size_bytes: int
    """Length of the whole object."""


class Storage(Protocol):
    """Objects by URI. Several threads may use it. Every URI must be one that `normalise` returned."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects below the folder `prefix`, at any depth, sorted by URI. Nothing comes from a cache.

        On local disk both ends of every file are read, for its etag.
        """

    def list_sizes(self, prefix: str) -> Iterator[ListedObject]:
        """The same objects, in any order: none is read, and those of an earlier page are not kept."""

    def stat(self, uri: str) -> StoredObject | None:
        """What is known of one object, or None where there is none."""

    def content_hash(self, uri: str, beat: Callable[[], None] = lambda: None) -> str:
        """The SHA-256 of a whole file on a disk; FileNotFoundError where there is none.

        Empty for an object on S3, because its ETag is made of the whole content. An unchanged file is read
        once on a machine, and `beat` is called now and then meanwhile.
        """

    def open(self, uri: str) -> BinaryIO:
        """A seekable reader that uses bounded memory; FileNotFoundError where there is no object."""

    def read_tail(self, uri: str, num_bytes: int) -> Tail:
        """The last `num_bytes` of an object, or all of a shorter one, in one request.

        FileNotFoundError where there is no object.
        """

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        """The content of a small object; FileNotFoundError where there is none.

        `max_bytes` is for an object that anybody may have written: RefusedError where it is larger.
        """

    def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
        """Write the object unless one exists; True if this call is known to have written it.

        False does not say who has written the existing object. When the reply to a write is lost, the write
        is repeated, and finds the object that its own first attempt wrote.
        """

    def metadata(self, uri: str) -> dict[str, str]:
        """The metadata that `create` was given with the content; always empty on local disk."""

    def replace(self, uri: str, data: bytes) -> None:
        """Write the object, whether or not one exists: for reports, never for parts."""

    def exchange(self, uri: str, data: Buffer, metadata: Mapping[str, str], *, etag: str) -> bool:
        """Replace the object with that `etag`; True if this call is known to have done it.

        As for `create`, a write whose reply was lost and that was repeated can also give False.
        """

    def delete(self, uri: str) -> None:
        """Remove the object if there is one."""

    def takes_pieces(self, uri: str) -> bool:
        """Whether an object of any size can be written, under the same conditions as a small one.

        Where only the store can tell, it is asked once, with an object that nobody else has, at `uri`; then
        large objects are uploaded in pieces.
        """

    def drop_unfinished(self, folder: str) -> None:
        """Remove what writes below a folder that were interrupted have left, as far as possible.

        Nobody may be writing there, except what may also be lost.
        """


def refuse_larger(uri: str, size_bytes: int, max_bytes: int | None) -> None:
    """Raise RefusedError for an object that is too large to be read."""
    if max_bytes is not None and size_bytes > max_bytes:
        raise RefusedError(f"{uri} has {size_bytes:,} bytes; at most {max_bytes:,} are read")
