"""Files of data sets on the Hugging Face Hub, read at the commit that the job began with."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import quote, unquote

from huggingface_hub import HfApi, HfFileSystem, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from actors.checkpoints.hub import HUB_ERRORS, ask_hub, first_line
from actors.storage.objects import StoredObject, Tail
from actors.storage.uris import HUB_SCHEME
from schemas.errors import SpecError, StorageError
from schemas.wording.printable import command_in

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 8 << 20
"""The most bytes of one request."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATH = re.compile(
    r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/@]+))?(?:/(?P<file>.*))?",
    re.ASCII | re.DOTALL,
)


class HubPath(NamedTuple):
    """A file, a folder or a pattern in a data set."""

    repository: str
    revision: str
    """A branch, tag or commit."""
    file: str
    """Its path in the repository; empty for the whole of it."""

    def __str__(self) -> str:
        root = f"{HUB_SCHEME}datasets/{self.repository}@{quote(self.revision, safe='')}"
        return f"{root}/{self.file}".rstrip("/")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return bool(_COMMIT.fullmatch(self.revision))


def parse_hub_path(path: str) -> HubPath:
    """The parts of a path such as `hf://datasets/org/name@revision/rows.csv`; SpecError for another."""
    match = _PATH.fullmatch(path)
    if not match or command_in(path) or "::" in path or ".." in path.split("/") or re.search(r"\?.*=", path):
        raise SpecError(f"{path!r}: the form on the Hub is hf://datasets/ORGANISATION/NAME[@REVISION]/PATH")
    revision = unquote(match["revision"] or constants.DEFAULT_REVISION)
    return HubPath(match["repository"], revision, (match["file"] or "").rstrip("/"))


class HubFiles:
    """The files of data sets, with what the intake needs of `Storage`. It never writes."""

    def __init__(self, deadline_s: float) -> None:
        """`deadline_s`: how long a request is repeated while the Hub is in trouble."""
        self._deadline_s = deadline_s

    @cached_property
    def _files(self) -> HfFileSystem:
        # The token comes from the environment. Listings of another job of this process may be out of date.
        return HfFileSystem(skip_instance_cache=True)

    def at_commit(self, path: HubPath) -> HubPath:
        """The same path at the commit that its revision names now."""
        if path.is_pinned:
            return path
        with _hub_errors(str(path)):
            answer = ask_hub(
                lambda: HfApi().dataset_info(path.repository, revision=path.revision),
                path.repository,
                self._deadline_s,
            )
        return path._replace(revision=str(answer.sha))

    def stat(self, uri: str) -> StoredObject | None:
        """What is known of one file, or None where there is none."""
        try:
            with _hub_errors(uri):
                details = ask_hub(lambda: self._files.info(uri), uri, self._deadline_s)
        except FileNotFoundError:
            return None
        return _stored_object(details) if details["type"] == "file" else None

    def list_sizes(self, prefix: str) -> Iterator[StoredObject]:
        """All files below a folder."""
        with _hub_errors(prefix):
            details = ask_hub(lambda: self._files.find(prefix, detail=True), prefix, self._deadline_s)
        assert isinstance(details, dict), "as it was asked for"
        return map(_stored_object, details.values())

    def open(self, uri: str) -> BinaryIO:
        """A reader of one file."""
        return io.BufferedReader(self._opened(uri), BLOCK_BYTES)

    def read_tail(self, uri: str, num_bytes: int) -> Tail:
        """The last bytes of a file."""
        with self._opened(uri) as file:
            start = max(0, file.size_bytes - num_bytes)
            file.seek(start)
            return Tail(data=file.read(file.size_bytes - start) or b"", size_bytes=file.size_bytes)

    def _opened(self, uri: str) -> "_HubFile":
        return _HubFile(self._files, uri, self._deadline_s)


@contextmanager
def _hub_errors(uri: str) -> Iterator[None]:
    """Convert the Hub's errors to ours; FileNotFoundError where it has the data set, and not this file."""
    try:
        yield
    except HUB_ERRORS as error:
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        if isinstance(cause, FileNotFoundError):
            raise
        if isinstance(cause, OfflineModeIsEnabled):
            raise SpecError(
                f"input.path: {uri} is on the Hub, and HF_HUB_OFFLINE is set. Unset it, or download files "
                "where there is a network (hf download --repo-type dataset ...) and name their folder"
            ) from error
        raise SpecError(
            f"input.path: {uri} cannot be read from the Hub: {first_line(cause).rstrip('.')}. Check its name "
            "and revision; a private or gated data set needs HF_TOKEN in the environment of the driver"
        ) from error


class _HubFile(io.RawIOBase):
    """A file of which each block is one request, repeated while the Hub is in trouble."""

    def __init__(self, files: HfFileSystem, uri: str, deadline_s: float) -> None:
        self._uri = uri
        self._deadline_s = deadline_s
        with _hub_errors(uri):
            # Without its own cache: it would read ahead of each block.
            self._file = ask_hub(lambda: files.open(uri, "rb", cache_type="none"), uri, deadline_s)
        self.size_bytes = int(self._file.size)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        block = memoryview(buffer).cast("B")
        num_bytes = min(len(block), BLOCK_BYTES, max(0, self.size_bytes - self._position))
        if not num_bytes:
            return 0
        with _hub_errors(self._uri):
            data = ask_hub(lambda: self._read(num_bytes), self._uri, self._deadline_s)
        if len(data) != num_bytes:
            raise StorageError(f"{self._uri}: asked the Hub for {num_bytes:,} bytes, got {len(data):,}")
        block[:num_bytes] = data
        self._position += num_bytes
        return num_bytes

    def _read(self, num_bytes: int) -> bytes:
        self._file.seek(self._position)
        return bytes(self._file.read(num_bytes))


def _stored_object(details: dict[str, object]) -> StoredObject:
    """A file as the Hub describes it. Its etag is the hash of its content."""
    lfs = details.get("lfs")
    etag = lfs["sha256"] if isinstance(lfs, dict) else details.get("blob_id")
    return StoredObject(
        uri=f"{HUB_SCHEME}{details['name']}", size_bytes=int(str(details["size"])), etag=str(etag)
    )
