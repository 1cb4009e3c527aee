"""One job's output: its folder, and the storage that holds it."""

from dataclasses import dataclass

from actors.storage.objects import Storage
from actors.storage.stores import open_storage
from actors.storage.uris import join, normalise
from schemas.output_layout import part_file


@dataclass(frozen=True, slots=True)
class Output:
    """The folder in which a job writes. Names below it are those of schemas/output_layout.py."""

    storage: Storage
    path: str
    """Normalised: `s3://bucket/folder` or an absolute local path."""

    def uri(self, name: str) -> str:
        """The URI of what the layout calls `name`."""
        return join(self.path, name)

    def part_uri(self, shard: str) -> str:
        """The URI of the part of the shard with this name."""
        return self.uri(part_file(shard))

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """The content of a small object. See `Storage.read` for the errors."""
        return self.storage.read(self.uri(name), max_bytes)

    def replace(self, name: str, data: bytes) -> None:
        """Write a report, whether or not it was there before."""
        self.storage.replace(self.uri(name), data)

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        return self.storage.stat(self.uri(name)) is not None


def open_output(path: str, *, deadline_s: float = 900.0) -> Output:
    """The output at a path that a spec or a person names; SpecError where it is not a usable path.

    `deadline_s`: for how many seconds requests are repeated.
    """
    folder = normalise(path)
    return Output(open_storage(folder, deadline_s=deadline_s), folder)
