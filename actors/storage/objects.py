"""Where rows come from and parts go to, behind one small interface.

`create` is the one operation that everything else rests on: it writes a whole object or nothing, and of any
number of writers of one URI exactly one is told that it did.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from schemas.errors import RefusedError

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What a listing tells of one object."""

    uri: str
    """Normalised: `s3://bucket/key` or an absolute local path."""
    size_bytes: int
    """Length of the content."""
    etag: str
    """Changes when the content does; comparable only within one kind of store."""


class Storage(Protocol):
    """Objects by URI. Safe to use from several threads; every URI is one that `normalise` returned."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object below the folder `prefix`, at any depth, sorted by URI, never from a cache."""

    def stat(self, uri: str) -> StoredObject | None:
        """One object, or None where there is none."""

    def open(self, uri: str) -> BinaryIO:
        """A seekable reader with bounded memory; FileNotFoundError where there is no object."""

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        """The whole of a small object; FileNotFoundError where there is none.

        `max_bytes`, of an object that anybody may have put there: RefusedError where it is larger.
        """

    def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
        """Write the object unless something is there already; True if this call is known to have done it.

        False does not say whose object is there: when the reply to a write is lost, its repetition meets
        its own first attempt.
        """

    def metadata(self, uri: str) -> dict[str, str]:
        """What `create` was given beside the content; always empty on local disk."""

    def replace(self, uri: str, data: bytes) -> None:
        """Write the object whether or not one is there: for reports, never for parts."""

    def exchange(self, uri: str, data: Buffer, metadata: Mapping[str, str], *, etag: str) -> bool:
        """Write the object in place of the one with that `etag`; True if this call is known to have done it.

        False, as in `create`, also where a lost reply's repetition meets its own first attempt.
        """

    def delete(self, uri: str) -> None:
        """Remove the object if there is one."""


def refuse_larger(uri: str, size_bytes: int, max_bytes: int | None) -> None:
    """RefusedError where an object is not to be read for its size."""
    if max_bytes is not None and size_bytes > max_bytes:
        raise RefusedError(f"{uri} has {size_bytes:,} bytes; at most {max_bytes:,} are read")
