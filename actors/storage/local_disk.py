"""Objects as files on a disk that every process of the job sees."""

import errno
import fcntl
import hashlib
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import PurePath
from typing import BinaryIO

from actors.storage.file_hashes import sha256_of
from actors.storage.objects import Buffer, ListedObject, StoredObject, Tail, refuse_larger
from schemas.errors import DarkroomError, RefusedError, SpecError, StorageError

UNFINISHED_S = 3600.0
"""The age, in seconds, from which a temporary file is nobody's."""
_ETAG_SAMPLE_BYTES = 64 * 1024
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors of a path that leads to nothing."""
_BLOCKED = (*_ABSENT, errno.EEXIST)
"""Errors that something other than a folder can cause where the path needs one."""
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems that lack an operation; which of them they give differs."""
_UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.EMLINK, *_UNSUPPORTED)
"""Errors of file systems between or on which no hard link can be made."""
_UNLOCKABLE = (errno.ENOLCK, *_UNSUPPORTED)
"""Errors of file systems without locks, such as NFS whose lock service does not run."""


class LocalStorage:
    """Objects as files on a disk that every process of the job sees.

    Content is written to a temporary file first, in `temp_dir` and not beside its target, so that a reader of
    `data/` never finds half a part. `temp_dir` must be on the same file system as the objects.
    """

    def __init__(self, *, temp_dir: str) -> None:
        self._temp_dir = temp_dir

    def list(self, prefix: str) -> Iterator[StoredObject]:
        objects = (self.stat(path) for path in sorted(self._walk(prefix)))
        return (stored for stored in objects if stored is not None)

    def list_sizes(self, prefix: str) -> Iterator[ListedObject]:
        for path in self._walk(prefix):
            with _converted_errors(path):
                try:
                    status = os.stat(path)
                except OSError as error:
                    if error.errno in _ABSENT:
                        continue
                    raise
            if stat.S_ISREG(status.st_mode):
                yield ListedObject(uri=path, size_bytes=status.st_size)

    def _walk(self, root: str) -> Iterator[str]:
        """The paths of all files below a folder, except the temporary ones."""
        for folder, subfolders, files in os.walk(root, onerror=_raise_unless_absent):
            subfolders[:] = [name for name in subfolders if os.path.join(folder, name) != self._temp_dir]
            yield from (os.path.join(folder, name) for name in files)

    def stat(self, uri: str) -> StoredObject | None:
        with _converted_errors(uri):
            try:
                # A folder can also have pipes and sockets, and to open one of those would block for ever.
                if not stat.S_ISREG(os.stat(uri).st_mode):
                    return None
                with open(uri, "rb") as file:
                    return _stored_object(uri, file)
            except OSError as error:
                if error.errno in _ABSENT:
                    return None
                raise

    def content_hash(self, uri: str, beat: Callable[[], None] = lambda: None) -> str:
        with _converted_errors(uri):
            return sha256_of(uri, beat)

    def open(self, uri: str) -> BinaryIO:
        with _converted_errors(uri):
            return _open_file(uri)

    def read_tail(self, uri: str, num_bytes: int) -> Tail:
        with _converted_errors(uri), _open_file(uri) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, size_bytes - num_bytes))
            return Tail(data=file.read(num_bytes), size_bytes=size_bytes)

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
                    raise RefusedError(f"{uri} is {_kind(uri)}, not a file; move it away") from None
                # On NFS a repeated request can fail on its own first success: then our file has two names.
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
            current = self.stat(uri)
            if current is None or current.etag != etag:
                return False
            os.replace(temporary, uri)
            _sync_folder(uri)
            return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """A lock that one process has at a time: a file system cannot compare and replace in one step."""
        folder = os.open(self._temp_dir, os.O_RDONLY)
        try:
            # The lock ends when the folder is closed, and also when the process dies.
            _lock(folder, self._temp_dir)
            yield
        finally:
            os.close(folder)

    def delete(self, uri: str) -> None:
        with _converted_errors(uri), suppress(FileNotFoundError):
            os.unlink(uri)
            _sync_folder(uri)

    def takes_pieces(self, uri: str) -> bool:
        return True

    def drop_unfinished(self, folder: str) -> None:
        with suppress(OSError), os.scandir(self._temp_dir) as entries:
            for entry in entries:
                if time.time() - entry.stat().st_mtime > UNFINISHED_S:
                    os.unlink(entry)

    @contextmanager
    def _written(self, data: Buffer) -> Iterator[str]:
        """The path of a temporary file with `data` safely on disk. Unless moved, it is deleted afterwards."""
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


def _lock(descriptor: int, path: str) -> None:
    """Wait for the lock of an open folder; RefusedError where its file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            raise
        raise RefusedError(
            f"{path}: this folder cannot be used for an output ({error.strerror}): parts are replaced under "
            "a lock, so _darkroom/ must be on a file system that has file locks; choose another disk or s3://"
        ) from error


def _open_file(path: str) -> BinaryIO:
    """The opened file; RefusedError for anything else. To read a pipe or a device could take for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise RefusedError(f"{path} is {_kind(path)}, and only files can be read; move it away")
    return open(path, "rb")


def _stored_object(path: str, file: BinaryIO) -> StoredObject:
    """A file as an object. The etag is a hash of the size and of both ends of the content: it must be cheap.

    The mtime is not part of it, because it differs between copies on two nodes.
    """
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256(str(size).encode())
    for offset in (0, max(0, size - _ETAG_SAMPLE_BYTES)):
        file.seek(offset)
        digest.update(file.read(_ETAG_SAMPLE_BYTES))
    return StoredObject(uri=path, size_bytes=size, etag=digest.hexdigest())


def _sync_folder(path: str) -> None:
    """Write the name of the new file at `path` to disk, as its content already is."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_unless_absent(error: OSError) -> None:
    """Raise the error of a folder that cannot be read. A folder that does not exist counts as empty."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise _converted_error(str(error.filename), error) from error


@contextmanager
def _converted_errors(path: str, *, absent_is_failure: bool = False) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # the path has a NUL in it
        raise SpecError(f"{path!r} cannot be the name of a file: {error}") from error
    except OSError as error:
        absent = isinstance(error, FileNotFoundError) and not os.path.islink(path)
        if absent and not absent_is_failure:
            raise
        raise _converted_error(path, error) from error


def _converted_error(path: str, error: OSError) -> DarkroomError:
    """Our error for the system's: StorageError for one that may pass, another one where somebody must act."""
    if error.errno in _UNLINKABLE and error.filename2:
        return RefusedError(
            f"{path}: this folder cannot be used for an output ({error.strerror}): parts are committed by "
            "hard link, so data/ and _darkroom/ must be on one file system that has hard links; choose "
            "another disk or s3://"
        )
    if error.errno in _BLOCKED:
        if obstacle := _first_non_folder(path, error):
            return SpecError(
                f"{path}: {obstacle} is {_kind(obstacle)}, not a folder; move it away or name another place"
            )
        if os.path.islink(path):
            return RefusedError(f"{path} is {_kind(path)}; move it away")
    if error.errno == errno.EISDIR:
        return RefusedError(f"{path} is a folder, not a file; move it away")
    if error.errno == errno.ENAMETOOLONG:
        return SpecError(f"{path}: a name in it is too long for this disk; choose a shorter one")
    return StorageError(f"{path}: {error.strerror or error}; check free space, permissions and the mount")


def _first_non_folder(path: str, error: OSError) -> str | None:
    """The first of the folders above `path` that exists and is not a folder; None where there is none."""
    # A folder that could not be created need not be above `path`: the temporary one is not.
    uncreated = [error.filename] if error.errno == errno.EEXIST else []
    folders = [*map(str, reversed(PurePath(path).parents)), *uncreated]
    return next((folder for folder in folders if os.path.lexists(folder) and not os.path.isdir(folder)), None)


def _kind(path: str) -> str:
    """What a path leads to, in words."""
    if not os.path.exists(path):
        return "a broken link"
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a pipe, a socket or a device"
