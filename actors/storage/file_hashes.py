"""The SHA-256 of whole files on this machine, which is computed once as long as a file does not change."""

import hashlib
import json
import os
import re
import time
import uuid
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from models.caches import cache_folder

KEPT_BYTES = 1 << 20
"""The size of a file from which its hash is kept for later processes. Smaller ones are read as fast."""
SETTLED_NS = 2_000_000_000
"""The age of a file's last change, in nanoseconds, from which its times tell it from the next change.

The coarsest file systems (FAT) keep times in steps of two seconds.
"""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _State(NamedTuple):
    """What a change of a file's content changes, without the content being read."""

    size: int
    mtime_ns: int
    ctime_ns: int
    """Programs that copy can set the mtime back, but not this one."""
    inode: int


def sha256_of(path: str) -> str:
    """The hash of a file's content, in hexadecimal; OSError where it cannot be read.

    A file that was hashed before on this machine, and has not changed since, is not read again.
    """
    path = os.path.realpath(path)
    state = _state_of(path)
    if time.time_ns() - max(state.mtime_ns, state.ctime_ns) < SETTLED_NS:
        return _hash(path)
    return _hash_once(path, state)


def _state_of(path: str) -> _State:
    status = os.stat(path)
    return _State(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=4096)
def _hash_once(path: str, state: _State) -> str:
    if state.size < KEPT_BYTES:
        return _hash(path)
    if known := _kept(path, state):
        return known
    digest = _hash(path)
    if _state_of(path) == state:
        _keep(path, state, digest)
    return digest


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(path: str, state: _State) -> str:
    """The hash that a process kept of the file in this state; empty if none did."""
    try:
        kept = json.loads(_entry(path).read_bytes())
        if kept["path"] == path and kept["state"] == [*state] and _SHA256.fullmatch(kept["sha256"]):
            return str(kept["sha256"])
    except (KeyError, OSError, RecursionError, RuntimeError, TypeError, ValueError):
        pass  # There is no entry, no cache folder, or something else wrote the entry.
    return ""


def _keep(path: str, state: _State, digest: str) -> None:
    """Keep the hash for later processes. A cache that cannot be written only costs time."""
    content = json.dumps({"path": path, "state": state, "sha256": digest})
    try:
        entry = _entry(path)
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_name(uuid.uuid4().hex)
        temporary.write_text(content)
        temporary.replace(entry)  # Several processes may do this at once.
    except (OSError, RuntimeError):
        pass


def _entry(path: str) -> Path:
    """The small file that keeps the hash of the file at this path."""
    return cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
