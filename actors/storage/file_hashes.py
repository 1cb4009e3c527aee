"""The SHA-256 of whole files on this machine, which is computed once as long as a file does not change."""

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from actors.storage.long_reading import LongReading
from models.caches import cache_folder

KEPT_BYTES = 1 << 20
"""The size of a file from which its hash is kept for later processes. Smaller ones are read as fast."""
SETTLED_NS = 2_000_000_000
"""The age of a file's last change, in nanoseconds, from which its times tell it from the next change.

The coarsest file systems (FAT) keep times in steps of two seconds.
"""
BLOCK_BYTES = 1 << 20
"""Bytes that are read at a time."""
MAX_KNOWN = 10_000
"""Files of which a process knows the hashes without looking into the cache."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _State(NamedTuple):
    """What a change of a file's content changes, without the content being read."""

    size: int
    mtime_ns: int
    ctime_ns: int
    """Programs that copy can set the mtime back, but not this one."""
    inode: int


_known: dict[str, tuple[_State, str]] = {}
"""The state and the hash of files, by path."""
_reading = LongReading("hashing files, which is done once")


def sha256_of(path: str, beat: Callable[[], None] = lambda: None) -> str:
    """The hash of a file's content, in hexadecimal; OSError where it cannot be read.

    A file that was hashed before on this machine, and has not changed since, is not read again. `beat` is
    called now and then while a file is read.
    """
    path = os.path.realpath(path)
    state = _state_of(path)
    is_settled = time.time_ns() - max(state.mtime_ns, state.ctime_ns) >= SETTLED_NS
    digest = is_settled and (_known_here(path, state) or _kept(path, state))
    if not digest:
        digest = _hash(path, beat)
        is_settled = is_settled and _state_of(path) == state
        if is_settled and state.size >= KEPT_BYTES:
            _keep(path, state, digest)
    if is_settled:
        _know(path, state, digest)
    return digest


def _state_of(path: str) -> _State:
    status = os.stat(path)
    return _State(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _hash(path: str, beat: Callable[[], None]) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while num_bytes := file.readinto(block):
            digest.update(block[:num_bytes])
            _reading.add(path, num_bytes)
            beat()
    return digest.hexdigest()


def _known_here(path: str, state: _State) -> str:
    """The hash that this process knows of the file in this state; empty if it knows none."""
    known_state, digest = _known.get(path, (None, ""))
    return digest if known_state == state else ""


def _know(path: str, state: _State, digest: str) -> None:
    if len(_known) >= MAX_KNOWN:
        _known.clear()
    _known[path] = state, digest


def _kept(path: str, state: _State) -> str:
    """The hash that a process kept of the file in this state; empty if none did."""
    if state.size < KEPT_BYTES:
        return ""
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
