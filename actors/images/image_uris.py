"""Pictures that rows name by URI. Rows are not trusted: what they may reach is decided here."""

import os
import posixpath
from collections.abc import Callable, Sequence

from actors.images.input_images import MAX_IMAGE_FILE_BYTES
from actors.storage.stores import Stores
from actors.storage.uris import S3_SCHEME, normalise
from schemas.errors import DarkroomError, RowError, SpecError


class ImageUris:
    """Reads files at or below the input's own folder, objects of its bucket, and what the spec allows."""

    def __init__(self, stores: Stores, folders: Sequence[str] = ()) -> None:
        """`folders`: whence rows may name pictures, wherever the input is."""
        self._stores = stores
        self._folders = tuple(map(normalise, folders))

    def reader(self, beside: str) -> Callable[[str], bytes]:
        """A function that reads a row's URI; `beside` is the input file that the row stands in."""

        def read(uri: str) -> bytes:
            allowed = resolve(uri, beside, self._folders)
            try:
                size_bytes = self._size_bytes(allowed)
                if size_bytes <= MAX_IMAGE_FILE_BYTES:
                    return self._stores.of(allowed).read(allowed)
            except FileNotFoundError as error:
                raise RowError("unreadable_uri", f"{uri} is no file that is there") from error
            except DarkroomError as error:
                raise RowError("unreadable_uri", f"{uri} cannot be read: {error}") from error
            raise RowError(
                "image_too_large",
                f"{uri} has {size_bytes:,} bytes; at most {MAX_IMAGE_FILE_BYTES:,} are read",
            )

        return read

    def _size_bytes(self, uri: str) -> int:
        """A row may name any object there is: terabytes of video, or a pipe, which would be read for ever."""
        stored = self._stores.of(uri).stat(uri)
        if stored is None:
            raise FileNotFoundError(uri)
        return stored.size_bytes


def resolve(uri: str, beside: str, folders: Sequence[str] = ()) -> str:
    """The place that a row's URI means; RowError where a row may not read from there."""
    if not uri:
        raise RowError("disallowed_uri", "the picture's path is empty")
    folder = posixpath.dirname(beside)
    relative = "://" not in uri and "::" not in uri and not uri.startswith(("/", "~"))
    try:
        place = normalise(posixpath.join(folder, uri) if relative else uri)
    except SpecError as error:
        raise RowError("disallowed_uri", str(error)) from error
    own = _bucket(beside) if beside.startswith(S3_SCHEME) else folder
    roots = [own, *folders]
    if not place.startswith(S3_SCHEME):
        # What a link names may lie anywhere.
        place = os.path.realpath(place)
        roots = [os.path.realpath(root) for root in roots if not root.startswith(S3_SCHEME)]
    if not any(place.startswith(f"{root.rstrip('/')}/") for root in roots):
        raise RowError(
            "disallowed_uri",
            f"{uri} is neither where the input is ({own}) nor in a folder that input.pictures names",
        )
    return place


def _bucket(uri: str) -> str:
    return S3_SCHEME + uri.removeprefix(S3_SCHEME).partition("/")[0]
