"""Pictures that rows name by URI. Rows are not trusted: what they may reach is decided here."""

import os
import posixpath
from collections.abc import Callable

from actors.storage import S3_SCHEME, Storage, normalise, open_storage
from schemas.errors import DarkroomError, RowError, SpecError

MAX_FILE_BYTES = 256 << 20
"""Of a picture that a row names."""


class RowUris:
    """Reads s3:// objects, and files at or below the input's own folder."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._storages: dict[bool, Storage] = {}

    def reader(self, beside: str) -> Callable[[str], bytes]:
        """A function that reads a row's URI; `beside` is the input file that the row stands in."""

        def read(uri: str) -> bytes:
            allowed = resolve(uri, beside)
            try:
                size_bytes = self._size_bytes(allowed)
                if size_bytes <= MAX_FILE_BYTES:
                    return self._storage(allowed).read(allowed)
            except FileNotFoundError as error:
                raise RowError("unreadable_uri", f"{uri} does not exist") from error
            except DarkroomError as error:
                raise RowError("unreadable_uri", f"{uri} cannot be read: {error}") from error
            raise RowError(
                "image_too_large", f"{uri} has {size_bytes:,} bytes; at most {MAX_FILE_BYTES:,} are read"
            )

        return read

    def _size_bytes(self, uri: str) -> int:
        """A row may name any object there is: terabytes of video, or a pipe, which would be read for ever."""
        stored = self._storage(uri).stat(uri)
        if stored is None:
            raise FileNotFoundError(uri)
        return stored.size_bytes

    def _storage(self, uri: str) -> Storage:
        remote = uri.startswith(S3_SCHEME)
        if remote not in self._storages:
            self._storages[remote] = open_storage(uri, deadline_s=self._deadline_s)
        return self._storages[remote]


def resolve(uri: str, beside: str) -> str:
    """The place that a row's URI means; RowError where a row may not read from there."""
    folder = posixpath.dirname(beside)
    relative = "://" not in uri and "::" not in uri and not uri.startswith(("/", "~"))
    try:
        place = normalise(posixpath.join(folder, uri) if relative else uri)
    except SpecError as error:
        raise RowError("disallowed_uri", str(error)) from error
    if place.startswith(S3_SCHEME):
        return place
    real, root = os.path.realpath(place), os.path.realpath(folder)
    if beside.startswith(S3_SCHEME) or os.path.commonpath([real, root]) != root:
        raise RowError(
            "disallowed_uri",
            f"{uri} is not below the input's folder; rows read files there, and s3:// objects",
        )
    return real
