"""Images that rows name by URI. Rows are not trusted: this module decides what they may read."""

import os
import posixpath
import re
from collections.abc import Callable, Sequence

from actors.images.input_images import MAX_IMAGE_FILE_BYTES
from actors.storage.stores import Stores
from actors.storage.uris import HUB_SCHEME, S3_SCHEME, normalise, not_a_place
from schemas.errors import RowError, SpecError
from schemas.output_layout import IMAGES_FOLDER, output_of_image

_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[^\x00-\x1f\x7f:?%]+")
"""A file's name that means itself in every kind of URI."""
_MAX_FOLDERS = 10_000


class ImageUris:
    """Reads the images that rows may name: files below the input's folder, or objects in its bucket, and what
    is in the folders that the spec allows."""

    def __init__(self, stores: Stores, folders: Sequence[str] = ()) -> None:
        """`folders`: those in input.pictures, from which rows may read wherever the input is."""
        self._stores = stores
        self._folders = tuple(map(normalise, folders))

    def reader(self, beside: str) -> Callable[[str], bytes]:
        """A function that returns the bytes at a row's URI; `beside` is the URI of the row's input file.

        The function raises RowError where the row may not read the URI, or where there is no such file. What
        else goes wrong is the storage's fault, as it may go wrong for every row: StorageError.
        """

        def read(uri: str) -> bytes:
            allowed = resolve(uri, beside, self._folders)
            try:
                size_bytes = self._size_bytes(allowed)
                if size_bytes <= MAX_IMAGE_FILE_BYTES:
                    return self._stores.of(allowed).read(allowed)
            except FileNotFoundError as error:
                raise RowError("unreadable_uri", f"{uri} does not exist or is not a file") from error
            except SpecError as error:
                raise RowError("unreadable_uri", f"{uri} cannot be the name of a file: {error}") from error
            raise RowError(
                "image_too_large",
                f"{uri} has {size_bytes:,} bytes; at most {MAX_IMAGE_FILE_BYTES:,} are read",
            )

        return read

    def _size_bytes(self, uri: str) -> int:
        """The size of a file or object. A row can name anything, such as a pipe or terabytes of video."""
        stored = self._stores.of(uri).stat(uri)
        if stored is None:
            raise FileNotFoundError(uri)
        return stored.size_bytes


class UriJudge:
    """Finds the URIs that the rows of one input file may not read, mostly by their text alone."""

    def __init__(self, beside: str, folders: Sequence[str] = ()) -> None:
        """`beside`: the URI of the input file; `folders`: those in input.pictures."""
        self._beside = beside
        self._folders = tuple(map(normalise, folders))
        self._allowed: dict[str, bool] = {}
        """By folder, as rows write it with its slash, whether every plain name in it may be read."""

    def problem(self, uri: str) -> RowError | None:
        """Why a row may not read this URI. No file is looked at: one that is a link may lead outside."""
        name = uri.rpartition("/")[2]
        folder = uri.removesuffix(name)
        if folder not in self._allowed:
            if len(self._allowed) == _MAX_FOLDERS:  # There may be as many folders as rows.
                self._allowed.clear()
            self._allowed[folder] = self._error(f"{folder}x") is None
        return None if self._allowed[folder] and _PLAIN_NAME.fullmatch(name) else self._error(uri)

    def _error(self, uri: str) -> RowError | None:
        try:
            resolve(uri, self._beside, self._folders)
        except RowError as error:
            return error
        return None


def resolve(uri: str, beside: str, folders: Sequence[str] = ()) -> str:
    """The normalised URI that a row's URI means; RowError where the row may not read it.

    `beside`: the URI of the row's input file. A relative path begins in its folder; that of an image of an
    output, which a part of it names, begins in the output.
    """
    if not uri:
        raise RowError("disallowed_uri", "the image's path is empty")
    if error := not_a_place(uri):
        raise error
    own_output = output_of_image(beside, uri)
    folder = posixpath.dirname(beside) if own_output is None else own_output
    relative = "://" not in uri and "::" not in uri and not uri.startswith(("/", "~"))
    try:
        resolved = normalise(posixpath.join(folder, uri) if relative else uri)
    except SpecError as error:
        raise RowError("disallowed_uri", str(error)) from error
    own = folder if own_output is None else f"{own_output}/{IMAGES_FOLDER}"
    own = _bucket(beside) if beside.startswith(S3_SCHEME) else own
    roots = [*folders] if beside.startswith(HUB_SCHEME) else [own, *folders]
    if not resolved.startswith(S3_SCHEME):
        # A link can lead anywhere, so what counts is its target.
        resolved = os.path.realpath(resolved)
        roots = [os.path.realpath(root) for root in roots if not root.startswith(S3_SCHEME)]
    if not any(resolved.startswith(f"{root.rstrip('/')}/") for root in roots):
        raise RowError(
            "disallowed_uri",
            f"{uri} is neither below the input's own folder or bucket ({own}) nor in a folder that "
            "input.pictures names",
        )
    return resolved


def _bucket(uri: str) -> str:
    return S3_SCHEME + uri.removeprefix(S3_SCHEME).partition("/")[0]
