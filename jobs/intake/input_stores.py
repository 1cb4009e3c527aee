"""The stores of input files: those of a job, and the Hub."""

from collections.abc import Iterator
from typing import BinaryIO, Protocol

from actors.storage.objects import ListedObject, StoredObject, Tail
from actors.storage.stores import Stores
from actors.storage.uris import HUB_SCHEME
from jobs.intake.hub_files import HubFiles


class Source(Protocol):
    """What the intake needs of a `Storage`, which says what each function does."""

    def list_sizes(self, prefix: str) -> Iterator[ListedObject]: ...

    def stat(self, uri: str) -> StoredObject | None: ...

    def open(self, uri: str) -> BinaryIO: ...

    def read_tail(self, uri: str, num_bytes: int) -> Tail: ...


class InputStores:
    """The stores of a job's input."""

    def __init__(self, stores: Stores, deadline_s: float) -> None:
        """`deadline_s`: how long requests to the Hub are repeated."""
        self._stores = stores
        self.hub = HubFiles(deadline_s)

    def of(self, uri: str) -> Source:
        """The store that holds the input file `uri`."""
        return self.hub if uri.startswith(HUB_SCHEME) else self._stores.of(uri)
