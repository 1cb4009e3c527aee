"""Where rows come from and parts go to: local disk or S3, behind one small interface.

`create` is the one operation everything else rests on: it writes a whole object or nothing, and of any
number of writers of one URI exactly one is told that it did. A process builds its own `Storage` from a
URI and never sends it to another; credentials, region and endpoint come from the environment alone.
"""

import errno
import fcntl
import hashlib
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO, Protocol
from urllib.parse import unquote

from schemas.errors import DarkroomError, RefusedError, SpecError, StorageError

S3_SCHEME = "s3://"
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_SIGNATURE = re.compile(
    r"([?&][^=&]*(?:credential|key|password|secret|sig|token)[^=&]*=)[^&]*", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ETAG_SAMPLE_BYTES = 64 * 1024

_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_IN_THE_WAY = (*_NOTHING_THERE, errno.EEXIST)
_UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)

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


def open_storage(uri: str, *, timeout_s: float = 60.0, deadline_s: float = 900.0) -> Storage:
    """The storage that holds `uri`.

    One try of a request may take `timeout_s` (more for a large upload); a request is repeated until
    `deadline_s`, then raises StorageError. Both are about S3: local disk answers or fails at once.
    """
    root = normalise(uri)
    if root.startswith(S3_SCHEME):
        # Deferred: it loads botocore and aiohttp, most of a second that local jobs need not wait.
        from actors.s3_storage import S3Storage

        return S3Storage(timeout_s=timeout_s, deadline_s=deadline_s)
    return LocalStorage(temp_dir=join(root, "_darkroom", "tmp"))


def refuse_larger(uri: str, size_bytes: int, max_bytes: int | None) -> None:
    """RefusedError where an object is not to be read for its size."""
    if max_bytes is not None and size_bytes > max_bytes:
        raise RefusedError(f"{uri} has {size_bytes:,} bytes; at most {max_bytes:,} are read")


def join(uri: str, *names: str) -> str:
    """The URI of `names` below `uri`."""
    return "/".join([uri.rstrip("/"), *names])


def normalise(uri: str) -> str:
    """The one spelling of a path from a spec: `s3://bucket/key` or an absolute local path.

    SpecError for everything else that some library would take: other schemes, chains such as
    `simplecache::s3://...`, credentials, query strings, and `..`.
    """
    if not uri or _CONTROL.search(uri):
        raise SpecError(f"{masked(uri)!r} is not a path: it is empty or holds control characters")
    if "::" in uri:
        raise SpecError(f"{masked(uri)!r}: chained paths ('::') are not read; name the file itself")
    if uri.lower().startswith(S3_SCHEME):
        return _normalise_s3(uri)
    if uri.lower().startswith("file://"):
        return _normalise_file_uri(uri)
    if scheme := _SCHEME.match(uri):
        raise SpecError(f"{masked(uri)!r}: {scheme[0]} is not supported; use s3://, file:/// or a local path")
    return _normalise_local(uri, uri)


def _normalise_s3(uri: str) -> str:
    bucket, _, key = uri[len(S3_SCHEME) :].partition("/")
    # A secret key may hold slashes.
    if "@" in bucket or (":" in bucket and "@" in key):
        raise SpecError(
            f"{masked(uri)!r}: credentials do not belong in a URI; set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment of the driver and the workers"
        )
    if "?" in key:
        raise SpecError(f"{masked(uri)!r}: query strings are not read (in a pattern use '*' in place of '?')")
    if not _BUCKET.match(bucket):
        raise SpecError(f"{uri!r}: {bucket!r} is not a bucket name; the form is s3://bucket/folder")
    _refuse_parent_segments(key, uri)
    return f"{S3_SCHEME}{bucket}/{key}".rstrip("/")


def _normalise_file_uri(uri: str) -> str:
    path = uri[len("file://") :]
    if "?" in path:
        raise SpecError(f"{masked(uri)!r}: query strings are not read")
    if not path.startswith("/"):
        raise SpecError(f"{masked(uri)!r}: the form is file:///absolute/path, with three slashes")
    return _normalise_local(unquote(path), uri)


def _normalise_local(path: str, uri: str) -> str:
    _refuse_parent_segments(path, uri)
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise SpecError(
            f"{uri!r}: no home folder of {path.split('/')[0]} is known here; write it out, or ./{path} for a "
            "name that begins with ~"
        )
    return os.path.abspath(expanded)


def _refuse_parent_segments(path: str, uri: str) -> None:
    if ".." in path.split("/"):
        raise SpecError(f"{uri!r}: '..' is not allowed in a path; write the path out")


def masked(uri: str) -> str:
    """The URI for a message: without what stands before '@', and without a signed link's signature."""
    return _SIGNATURE.sub(r"\1***", re.sub(r"://.*@", "://***@", uri, flags=re.DOTALL))


class LocalStorage:
    """Files on a disk that every process of the job sees.

    Content is written to a temporary file first, in `temp_dir` and not beside its target, so that a
    reader of `data/` never meets half a part. `temp_dir` must lie on the same file system.
    """

    def __init__(self, *, temp_dir: str) -> None:
        self._temp_dir = temp_dir

    def list(self, prefix: str) -> Iterator[StoredObject]:
        found = (self.stat(path) for path in sorted(self._walk(prefix)))
        return (stored for stored in found if stored is not None)

    def _walk(self, folder: str) -> Iterator[str]:
        for here, folders, files in os.walk(folder, onerror=_raise_unless_absent):
            folders[:] = [name for name in folders if os.path.join(here, name) != self._temp_dir]
            yield from (os.path.join(here, name) for name in files)

    def stat(self, uri: str) -> StoredObject | None:
        with _converted_errors(uri):
            try:
                # Listings meet pipes and sockets too, and opening one of those would wait for ever.
                if not stat.S_ISREG(os.stat(uri).st_mode):
                    return None
                with open(uri, "rb") as file:
                    return _describe(uri, file)
            except OSError as error:
                if error.errno in _NOTHING_THERE:
                    return None
                raise

    def open(self, uri: str) -> BinaryIO:
        with _converted_errors(uri):
            return _open_file(uri)

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        with _converted_errors(uri), _open_file(uri) as file:
            refuse_larger(uri, os.fstat(file.fileno()).st_size, max_bytes)
            return file.read()

    def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
        with _converted_errors(uri, absent_is_failure=True), self._written(data) as temporary:
            os.makedirs(os.path.dirname(uri), exist_ok=True)
            try:
                os.link(temporary, uri)
            except FileExistsError:
                if not os.path.isfile(uri) and os.path.lexists(uri):
                    raise RefusedError(f"{uri} is {_kind(uri)}, where a file belongs; move it away") from None
                # On NFS a repeated request can meet its own first success: then our file has two names.
                return os.stat(temporary).st_nlink == 2
            _sync_folder(uri)
            return True

    def metadata(self, uri: str) -> dict[str, str]:
        return {}

    def replace(self, uri: str, data: bytes) -> None:
        with _converted_errors(uri, absent_is_failure=True), self._written(data) as temporary:
            os.makedirs(os.path.dirname(uri), exist_ok=True)
            os.replace(temporary, uri)
            _sync_folder(uri)

    def exchange(self, uri: str, data: Buffer, metadata: Mapping[str, str], *, etag: str) -> bool:
        with _converted_errors(uri), self._written(data) as temporary, self._locked():
            there = self.stat(uri)
            if there is None or there.etag != etag:
                return False
            os.replace(temporary, uri)
            _sync_folder(uri)
            return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time: a file system compares nothing when it renames."""
        folder = os.open(self._temp_dir, os.O_RDONLY)
        try:
            # Given back when the folder is closed, also by a process that dies.
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def delete(self, uri: str) -> None:
        with _converted_errors(uri), suppress(FileNotFoundError):
            os.unlink(uri)

    @contextmanager
    def _written(self, data: Buffer) -> Iterator[str]:
        """A temporary file with `data` safely on disk, gone afterwards unless it was moved."""
        os.makedirs(self._temp_dir, exist_ok=True)
        path = os.path.join(self._temp_dir, uuid.uuid4().hex)
        try:
            with open(path, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


def _open_file(path: str) -> BinaryIO:
    """Pipes and devices lie in folders too, and reading those would wait or go on for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise RefusedError(f"{path} is {_kind(path)}, where only a file can be read; move it away")
    return open(path, "rb")


def _describe(path: str, file: BinaryIO) -> StoredObject:
    """Size and a sample of the content: not the mtime, which differs between copies on two nodes."""
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256(str(size).encode())
    for offset in (0, max(0, size - _ETAG_SAMPLE_BYTES)):
        file.seek(offset)
        digest.update(file.read(_ETAG_SAMPLE_BYTES))
    return StoredObject(uri=path, size_bytes=size, etag=digest.hexdigest())


def _sync_folder(path: str) -> None:
    """Make the name of a new file as durable as its content."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_unless_absent(error: OSError) -> None:
    """A folder that is not there is empty; one that cannot be read must not look empty."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise _verdict(str(error.filename), error) from error


@contextmanager
def _converted_errors(path: str, *, absent_is_failure: bool = False) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # of a name with a NUL in it
        raise SpecError(f"{path!r} can be no file's name: {error}") from error
    except OSError as error:
        absent = isinstance(error, FileNotFoundError) and not os.path.islink(path)
        if absent and not absent_is_failure:
            raise
        raise _verdict(path, error) from error


def _verdict(path: str, error: OSError) -> DarkroomError:
    """What an error means: most pass by, and those that stay as they are until somebody acts say so."""
    if error.errno in _UNLINKABLE and error.filename2:
        return RefusedError(
            f"{path}: this folder cannot hold an output ({error.strerror}): parts are committed by hard "
            "link, so data/ and _darkroom/ must lie on one file system that has hard links"
        )
    if error.errno in _IN_THE_WAY:
        if place := _no_folder(path, error):
            return SpecError(
                f"{path}: {place} is {_kind(place)}, no folder; move it away or name another place"
            )
        if os.path.islink(path):
            return RefusedError(f"{path} is {_kind(path)}; move it away")
    if error.errno == errno.EISDIR:
        return RefusedError(f"{path} is a folder, where a file belongs; move it away")
    if error.errno == errno.ENAMETOOLONG:
        return SpecError(f"{path}: a name in it is too long for this disk; choose a shorter one")
    return StorageError(f"{path}: {error.strerror or error}; check free space, permissions and the mount")


def _no_folder(path: str, error: OSError) -> str | None:
    """The first place on the way to `path` where something else is than a folder."""
    # What a folder was to be made of, of unfinished files say, need not be on that way.
    made = [error.filename] if error.errno == errno.EEXIST else []
    places = [*map(str, reversed(PurePath(path).parents)), *made]
    return next((place for place in places if os.path.lexists(place) and not os.path.isdir(place)), None)


def _kind(path: str) -> str:
    """What is there, in words."""
    if not os.path.exists(path):
        return "a link that leads nowhere"
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a pipe, a socket or a device"
