"""A store in memory that loses requests and replies, is slow, and lists what was there a while ago."""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import BinaryIO, TypeVar

from actors.storage.objects import Buffer, StoredObject
from schemas.errors import StorageError
from tests.support.simulation.simulated_time import Clock

Reply = TypeVar("Reply")

MAX_TRIES = 6
PAGE = 3
"""Objects of a listing that are looked at in one moment."""


@dataclass(slots=True, kw_only=True)
class Faults:
    """How probable each is, per occasion."""

    slow_s: float = 0.0
    """No probability: the longest time between two steps."""
    crash: float = 0.0
    """That a process dies, before or after each request."""
    cut_off: float = 0.0
    """That it is taken for dead there, and goes on."""
    preempted: float = 0.0
    """That a death is the machine's, and Ray knows it."""
    refused: float = 0.0
    """That a request has no effect (503, 409, a reset)."""
    lost: float = 0.0
    """That it has its effect and the reply is lost."""
    late: float = 0.0
    """That it is given up, and has its effect when nobody thinks of it any more."""
    stale: float = 0.0
    """That a listing shows objects as they were a while ago."""
    hang: float = 0.0
    """That a thread stands still between two steps, for longer than the driver's patience."""
    immortal: float = 0.0
    """That a worker outlives the order to end, or its driver."""
    no_memory: float = 0.0
    """That a row fails which could be made."""
    fails: float = 0.0
    """That a shard cannot be made, and its worker lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """An object from one write to the next."""

    data: bytes
    metadata: Mapping[str, str]
    etag: str
    replaces: str | None
    """The etag that the writer named."""
    commit: int | None
    """Whose write it is."""
    since_s: float


Watch = Callable[[str, Version | None, Version], None]
"""Told each write: where, what was there, what is there now."""


class SimulatedStore:
    """`Storage`, with the patience of `S3Storage`: a request is repeated until its reply arrives."""

    def __init__(self, clock: Clock, random: Random, faults: Faults, watch: Watch) -> None:
        self._clock = clock
        self._random = random
        self._faults = faults
        self._watch = watch
        self._histories: defaultdict[str, list[Version | None]] = defaultdict(list)
        self.effects: set[int] = set()
        """Commits that put their part in its place."""
        self.seen: Counter[str] = Counter()
        """What it did, to show that it does all of it."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._request(lambda _: None)
        age_s = 0.0
        if self._random.random() < self._faults.stale:
            age_s = self._random.uniform(0, 60)
            self.seen["stale listing"] += 1
        uris = sorted(uri for uri in self._histories if uri.startswith(f"{prefix}/"))
        for place, uri in enumerate(uris):
            if place % PAGE == PAGE - 1:
                self.pause()
            version = self._as_of(uri, self._clock.now_s - age_s * self._random.random() if age_s else None)
            if version:
                yield _stored(uri, version)

    def _as_of(self, uri: str, time_s: float | None) -> Version | None:
        if time_s is None:
            return self.now(uri)
        seen = [version for version in self._histories[uri] if version and version.since_s <= time_s]
        return seen[-1] if seen else None

    def stat(self, uri: str) -> StoredObject | None:
        version = self._request(lambda _: self.now(uri))
        return version and _stored(uri, version)

    def open(self, uri: str) -> BinaryIO:
        return io.BytesIO(self.read(uri))

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        return self._get(uri).data

    def metadata(self, uri: str) -> dict[str, str]:
        return dict(self._get(uri).metadata)

    def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
        return self.write(uri, data, metadata, condition=lambda there: there is None)

    def exchange(self, uri: str, data: Buffer, metadata: Mapping[str, str], *, etag: str) -> bool:
        return self.write(
            uri,
            data,
            metadata,
            replaces=etag,
            condition=lambda there: there is not None and there.etag == etag,
        )

    def replace(self, uri: str, data: bytes) -> None:
        self.write(uri, data, {})

    def delete(self, uri: str) -> None:
        self._request(lambda _: self._histories[uri].append(None))

    def now(self, uri: str) -> Version | None:
        """What is there, without a request."""
        history = self._histories.get(uri)
        return history[-1] if history else None

    def write(
        self,
        uri: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        replaces: str | None = None,
        condition: Callable[[Version | None], bool] = lambda there: True,
    ) -> bool:
        """A PUT."""
        commit, content = self._clock.thread.commit, bytes(data)
        etag = hashlib.md5(content, usedforsecurity=False).hexdigest()

        def put(tries: int) -> bool:
            there = self.now(uri)
            if not condition(there):
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
            self._watch(uri, there, version)
            return True

        return self._request(put, writes=True)

    def _sent(self, metadata: Mapping[str, str], tries: int) -> Mapping[str, str]:
        """The metadata that the request carries at this try."""
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
        raise StorageError("the store did not answer until the deadline")

    def pause(self) -> None:
        """Between two steps of a thread anything may happen to it."""
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
