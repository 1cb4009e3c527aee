"""Objects as files on a disk that every process of the job sees."""

import errno
import fcntl
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import PurePath
from typing import BinaryIO

from actors.storage.objects import Buffer, StoredObject, refuse_larger
from schemas.errors import DarkroomError, RefusedError, SpecError, StorageError

_ETAG_SAMPLE_BYTES = 64 * 1024
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_IN_THE_WAY = (*_NOTHING_THERE, errno.EEXIST)
_UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)


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
