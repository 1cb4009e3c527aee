"""The hash of a whole file: every byte counts, and an unchanged file is read once."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.storage import file_hashes
from actors.storage.file_hashes import BLOCK_BYTES, KEPT_BYTES, sha256_of
from actors.storage.long_reading import TELL_AFTER_S, TELL_EVERY_S, LongReading, tell_of_reading


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, in a process that has hashed nothing yet, where files are old at once."""
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "SETTLED_NS", 0)
    forget()
    return tmp_path / "cache" / "hashes"


def forget() -> None:
    """Forget what this process knows, as a new process does."""
    file_hashes._known.clear()


def large_file(folder: Path, num_bytes: int = 3 * KEPT_BYTES) -> Path:
    path = folder / "large"
    path.write_bytes(os.urandom(num_bytes))
    return path


def flip_a_byte(path: Path, position: int) -> None:
    """Change one byte in place, and set the mtime back as programs that copy do."""
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    # A disk's clock ticks every few milliseconds, and a test can be as quick as that.
    while path.stat().st_ctime_ns == times.st_ctime_ns or path.stat().st_mtime_ns != times.st_mtime_ns:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def put_other_hash(cache: Path, digest: str) -> None:
    """Write another hash into the only entry of the cache, by which its use is seen."""
    (entry,) = cache.iterdir()
    entry.write_text(entry.read_text().replace(digest, "ab" * 32))


@pytest.mark.parametrize("num_bytes", [0, 10, KEPT_BYTES - 1, KEPT_BYTES, 3 * KEPT_BYTES + 1])
def test_a_hash_is_that_of_the_whole_content(tmp_path: Path, num_bytes: int) -> None:
    """The first time, when a process knows it, and when the cache does."""
    path = large_file(tmp_path, num_bytes)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()

    first, again = sha256_of(str(path)), sha256_of(str(path))
    forget()

    assert first == again == sha256_of(str(path)) == expected


@pytest.mark.parametrize("other_process", [False, True])
def test_one_changed_byte_is_seen_though_size_and_mtime_stay(tmp_path: Path, other_process: bool) -> None:
    """Of all the times of a file, the ctime cannot be set back."""
    path = large_file(tmp_path)
    before = sha256_of(str(path))

    flip_a_byte(path, KEPT_BYTES + KEPT_BYTES // 2)
    if other_process:
        forget()

    assert sha256_of(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest() != before


def test_a_large_file_is_read_once_on_a_machine(tmp_path: Path, cache: Path) -> None:
    """Another process finds its hash in the cache, also by another name that leads to the file."""
    path = large_file(tmp_path)
    (tmp_path / "link").symlink_to(path)
    digest = sha256_of(str(path))
    forget()
    put_other_hash(cache, digest)

    assert sha256_of(str(path)) == sha256_of(str(tmp_path / "link")) == "ab" * 32


def test_small_files_leave_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    """An input can have hundreds of thousands."""
    sha256_of(str(large_file(tmp_path, KEPT_BYTES - 1)))

    assert not cache.exists()


def test_a_file_that_changed_a_moment_ago_is_read_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some disks the next change has the same time."""
    monkeypatch.setattr(file_hashes, "SETTLED_NS", 3_600_000_000_000)
    path = large_file(tmp_path)

    sha256_of(str(path))

    assert not cache.exists()
    assert not file_hashes._known


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"path": 1, "state": [], "sha256": []}', "[" * 10_000])
def test_a_damaged_entry_is_made_again(tmp_path: Path, cache: Path, content: str) -> None:
    """As if it were not there."""
    path = large_file(tmp_path)
    digest = sha256_of(str(path))
    (entry,) = cache.iterdir()
    good = entry.read_text()
    entry.write_text(content)
    forget()

    assert sha256_of(str(path)) == digest
    assert entry.read_text() == good


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, cache: Path) -> None:
    """A container may have no home."""
    cache.parent.write_text("a file where the folder should be")
    path = large_file(tmp_path)

    assert sha256_of(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a program is told of the hashing of its files."""
    monkeypatch.setattr(file_hashes, "_reading", LongReading("hashing files, which is done once"))
    lines: list[str] = []
    tell_of_reading(lines.append)
    return lines


def slow_clock(monkeypatch: pytest.MonkeyPatch, seconds_per_block: float) -> Callable[[], float]:
    """Let each block of a file take so long. Returns the clock."""
    now = 1000.0

    def monotonic() -> float:
        nonlocal now
        now += seconds_per_block
        return now

    monkeypatch.setattr(time, "monotonic", monotonic)
    return monotonic


def test_long_hashing_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    """After two seconds of it, and every ten seconds then: gigabytes of weights take a while."""
    num_blocks = 100
    path = large_file(tmp_path, num_blocks * BLOCK_BYTES)
    slow_clock(monkeypatch, 0.25)

    sha256_of(str(path))

    num_after_first = (num_blocks * 0.25 - TELL_AFTER_S) / TELL_EVERY_S
    assert len(told) == 1 + int(num_after_first)
    assert told[0] == f"hashing files, which is done once: 9.4 MB read, now {path}"


@pytest.mark.parametrize("seconds_per_block", [0.01, 5.0])
def test_short_hashing_is_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str], seconds_per_block: float
) -> None:
    """Nor the time between small files, which goes into something else."""
    slow_clock(monkeypatch, seconds_per_block)

    for number in range(20):
        path = tmp_path / str(number)
        path.write_bytes(b"x")
        sha256_of(str(path))

    assert told == []
