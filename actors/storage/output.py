"""One job's output: its folder, and the storage in which the folder is."""

from dataclasses import dataclass

from actors.storage.objects import Storage
from actors.storage.stores import open_storage
from actors.storage.uris import join, normalise
from schemas.output_layout import part_file


@dataclass(frozen=True, slots=True)
class Output:
    """The folder into which a job writes. The names in it are those of schemas/output_layout.py."""

    storage: Storage
    path: str
    """Normalised: `s3://bucket/folder` or an absolute local path."""

    def uri(self, name: str) -> str:
        """The URI of the object or folder with this name in the output."""
        return join(self.path, name)

    def part_uri(self, shard: str) -> str:
        """The URI of the part of the shard with this name."""
        return self.uri(part_file(shard))

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """The content of a small object. `Storage.read` lists the errors."""
        return self.storage.read(self.uri(name), max_bytes)

    def replace(self, name: str, data: bytes) -> None:
        """Write a report, whether or not one exists."""
        self.storage.replace(self.uri(name), data)

    def has(self, name: str) -> bool:
        """Whether an object with this name exists."""
        return self.storage.stat(self.uri(name)) is not None


def open_output(path: str, *, deadline_s: float = 900.0, in_pieces: bool | None = None) -> Output:
    """The output at a path from a spec or a command line; SpecError where the path cannot be used.

    `deadline_s`: how long requests are repeated, in seconds. `in_pieces`: as for `open_storage`.
    """
    folder = normalise(path)
    return Output(open_storage(folder, deadline_s=deadline_s, in_pieces=in_pieces), folder)
