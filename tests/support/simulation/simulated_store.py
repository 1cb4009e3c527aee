"""A store in memory that is slow, loses requests and replies, and lists objects of the past."""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import BinaryIO, TypeVar

from actors.storage.objects import Buffer, StoredObject, Tail
from schemas.errors import StorageError
from tests.support.simulation.simulated_time import Clock

Reply = TypeVar("Reply")

MAX_TRIES = 6
PAGE = 3
"""The number of objects of a listing that belong to one moment."""


@dataclass(slots=True, kw_only=True)
class Faults:
    """The probability of each fault, at each occasion."""

    slow_s: float = 0.0
    """The longest time between two steps; this is not a probability."""
    crash: float = 0.0
    """A process dies, before or after each request."""
    cut_off: float = 0.0
    """A process counts as dead at that moment, but goes on."""
    preempted: float = 0.0
    """A death is the machine's, and Ray knows it."""
    reclaimed: float = 0.0
    """A worker is told to end when it begins a shard; it gives its other shards back."""
    refused: float = 0.0
    """A request has no effect (503, 409, a reset)."""
    lost: float = 0.0
    """A request takes effect, but its reply is lost."""
    late: float = 0.0
    """A request is given up, but takes effect much later."""
    stale: float = 0.0
    """A listing shows objects as they were some time ago."""
    hang: float = 0.0
    """A thread hangs between two steps, for longer than the driver waits."""
    immortal: float = 0.0
    """A worker outlives the order to end, or its driver."""
    no_memory: float = 0.0
    """A row that could be generated fails with out_of_memory."""
    fails: float = 0.0
    """A shard fails, but its worker lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """An object's state from one write to the next."""

    data: bytes
    metadata: Mapping[str, str]
    etag: str
    replaces: str | None
    """The etag that the writer wanted to replace."""
    commit: int | None
    """The number of the commit that wrote it; None if no commit did."""
    since_s: float
    """When it was written, in simulated seconds."""


Watch = Callable[[str, Version | None, Version], None]
"""Called after each write with the URI, the version before and the version after."""


class SimulatedStore:
    """A `Storage` that repeats requests as `S3Storage` does, until a reply arrives."""

    def __init__(self, clock: Clock, random: Random, faults: Faults, watch: Watch) -> None:
        self._clock = clock
        self._random = random
        self._faults = faults
        self._watch = watch
        self._histories: defaultdict[str, list[Version | None]] = defaultdict(list)
        self.effects: set[int] = set()
        """The numbers of the commits whose write took effect."""
        self.seen: Counter[str] = Counter()
        """How often each fault happened, so that a test can check that all of them happen."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._request(lambda _: None)
        age_s = 0.0
        if self._random.random() < self._faults.stale:
            age_s = self._random.uniform(0, 60)
            self.seen["stale listing"] += 1
        uris = sorted(uri for uri in self._histories if uri.startswith(f"{prefix}/"))
        for i, uri in enumerate(uris):
            if i % PAGE == PAGE - 1:
                self.pause()
            version = self._as_of(uri, self._clock.now_s - age_s * self._random.random() if age_s else None)
            if version:
                yield _stored(uri, version)

    def list_sizes(self, prefix: str) -> Iterator[StoredObject]:
        return self.list(prefix)

    def _as_of(self, uri: str, time_s: float | None) -> Version | None:
        if time_s is None:
            return self.now(uri)
        versions = [version for version in self._histories[uri] if version and version.since_s <= time_s]
        return versions[-1] if versions else None

    def stat(self, uri: str) -> StoredObject | None:
        version = self._request(lambda _: self.now(uri))
        return version and _stored(uri, version)

    def content_hash(self, uri: str, beat: Callable[[], None] = lambda: None) -> str:
        return ""

    def open(self, uri: str) -> BinaryIO:
        return io.BytesIO(self.read(uri))

    def read_tail(self, uri: str, num_bytes: int) -> Tail:
        data = self.read(uri)
        return Tail(data=data[-num_bytes:], size_bytes=len(data))

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        return self._get(uri).data

    def metadata(self, uri: str) -> dict[str, str]:
        return dict(self._get(uri).metadata)

    def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
        return self.write(uri, data, metadata, condition=lambda current: current is None)

    def exchange(self, uri: str, data: Buffer, metadata: Mapping[str, str], *, etag: str) -> bool:
        return self.write(
            uri,
            data,
            metadata,
            replaces=etag,
            condition=lambda current: current is not None and current.etag == etag,
        )

    def replace(self, uri: str, data: bytes) -> None:
        self.write(uri, data, {})

    def delete(self, uri: str) -> None:
        self._request(lambda _: self._histories[uri].append(None))

    def now(self, uri: str) -> Version | None:
        """The current version of an object, without a request; None if it does not exist."""
        history = self._histories.get(uri)
        return history[-1] if history else None

    def write(
        self,
        uri: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        replaces: str | None = None,
        condition: Callable[[Version | None], bool] = lambda current: True,
    ) -> bool:
        """Send a PUT, and return whether its condition was true and it took effect."""
        commit, content = self._clock.thread.commit, bytes(data)
        etag = hashlib.md5(content, usedforsecurity=False).hexdigest()

        def put(tries: int) -> bool:
            current = self.now(uri)
            if not condition(current):
                return False
            version = Version(
                data=content,
                metadata=self._sent(metadata, tries),
                etag=etag,
                replaces=replaces,
                commit=commit,
                since_s=self._clock.now_s,
            )
            self._histories[uri].append(version)
            if commit is not None:
                self.effects.add(commit)
            self._watch(uri, current, version)
            return True

        return self._request(put, writes=True)

    def _sent(self, metadata: Mapping[str, str], tries: int) -> Mapping[str, str]:
        """The metadata that the request sends at this try."""
        return metadata

    def _get(self, uri: str) -> Version:
        version = self._request(lambda _: self.now(uri))
        if version is None:
            raise FileNotFoundError(uri)
        return version

    def _request(self, effect: Callable[[int], Reply], *, writes: bool = False) -> Reply:
        faults, random = self._faults, self._random
        for tries in range(1, MAX_TRIES + 1):
            self.pause()
            if random.random() < faults.refused:
                continue
            if writes and random.random() < faults.late:
                self.seen["late write"] += 1
                self._clock.after(random.uniform(0.1, 60), effect, tries)
                continue
            reply = effect(tries)
            self.pause()
            if random.random() >= faults.lost:
                return reply
            self.seen["lost reply"] += 1
        raise StorageError("the store did not answer before the deadline")

    def pause(self) -> None:
        """Inject faults between two steps of the current thread."""
        random, faults, thread = self._random, self._faults, self._clock.thread
        chance = random.random()
        if chance < faults.crash:
            self.seen["crash"] += 1
            thread.process.kill()
        elif chance < faults.crash + faults.cut_off:
            self.seen["cut off"] += 1
            thread.process.cut_off()
        elif chance < faults.crash + faults.cut_off + faults.hang:
            thread.sleep(random.uniform(10, 120))
        thread.sleep(faults.slow_s * random.random())


def _stored(uri: str, version: Version) -> StoredObject:
    return StoredObject(uri=uri, size_bytes=len(version.data), etag=version.etag)
