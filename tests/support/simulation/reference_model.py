"""The rules that an output must fulfil, whatever happened to the processes that wrote it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import Enum

from jobs.dispatch.poison import MAX_ALONE
from schemas.job import Shard
from tests.support.simulation.simulated_store import Version
from tests.support.simulation.simulated_time import ViolationError

Outcomes = dict[str, str]
"""The outcome of each row by its name: `ok` or an error code."""


class Nature(Enum):
    """What happens when a row is generated; the value is its outcome."""

    HEALTHY = "ok"
    BAD = "invalid_row"
    POISON = "worker_crash"


OK, NO_MEMORY = "ok", "out_of_memory"
CRASH = Nature.POISON.value


def row_name(shard: Shard, row: int) -> str:
    """The name of a row of the shard; `row` counts from the shard's start."""
    return f"{shard.uri}:{shard.model}:{shard.start + row}"


def encode(outcomes: Outcomes) -> bytes:
    """The content of a part. As in darkroom, nothing in it tells which process wrote it, or when."""
    return json.dumps([*outcomes.items()]).encode()


def decode(part: bytes) -> Outcomes:
    """The outcomes in a part; ViolationError if a row has two."""
    rows: list[tuple[str, str]] = json.loads(part)
    outcomes = dict(rows)
    if len(outcomes) != len(rows):
        raise ViolationError(f"a row has more than one outcome: {rows}")
    return outcomes


class ReferenceModel:
    """Checks every write to the store and every answer to a commit."""

    def __init__(
        self, output: str, job: str, shards: Mapping[str, Shard], natures: Mapping[str, Nature]
    ) -> None:
        """`shards` are by the URI of their parts, `natures` by the name of the row."""
        self._success = f"{output}/_SUCCESS"
        self._data = f"{output}/data/"
        self._job = job
        self._shards = shards
        self._natures = natures
        self._parts: dict[str, tuple[Version, Outcomes]] = {}
        """The current version of each part, with its outcomes, by URI."""
        self.blamed: Counter[str] = Counter()
        """How often each row, by its name, was rehearsed alone by a worker that counts as dead."""
        self.seen: Counter[str] = Counter()
        """How often parts were committed, dropped and rewritten."""

    def written(self, uri: str, before: Version | None, after: Version) -> None:
        """Check a write that has taken effect; ViolationError if it breaks a rule."""
        if uri == self._success and (missing := [*self.missing()]):
            raise ViolationError(f"{uri} was written without {', '.join(shard.name for shard in missing)}")
        if not uri.startswith(self._data):
            return
        shard = self._shards.get(uri)
        if shard is None:
            raise ViolationError(f"{uri} is not a part of this job")
        if after.replaces != (before and before.etag):
            raise ViolationError(f"{uri} was overwritten: {before and before.data!r} by {after.data!r}")
        owner = (after.metadata.get("job"), after.metadata.get("shard"))
        if owner != (self._job, shard.name):
            raise ViolationError(f"{uri} says that it belongs to {owner}")
        outcomes = decode(after.data)
        self._check_rows(shard, outcomes)
        if before:
            self._check_unchanged(self._parts[uri][1], outcomes)
            self.seen["part rewritten"] += 1
        self._parts[uri] = after, outcomes

    def _check_rows(self, shard: Shard, outcomes: Outcomes) -> None:
        if [*outcomes] != [row_name(shard, row) for row in range(shard.num_rows)]:
            raise ViolationError(f"{shard.name} contains other rows than its shard: {[*outcomes]}")
        for row, outcome in outcomes.items():
            if outcome not in self._possible(row):
                raise ViolationError(f"{row} is {self._natures[row].name} and was recorded as {outcome}")

    def _possible(self, row: str) -> set[str]:
        nature = self._natures[row]
        if nature is Nature.BAD:
            return {nature.value}
        crash = {CRASH} if self.blamed[row] > 1 else set[str]()
        return crash | {OK, NO_MEMORY} if nature is Nature.HEALTHY else crash

    @staticmethod
    def _check_unchanged(before: Outcomes, after: Outcomes) -> None:
        for row, outcome in before.items():
            if outcome == OK and after[row] != OK:
                raise ViolationError(f"{row} was ok, and is {after[row]} now")

    def answered(self, uri: str, commit: int, *, committed: bool, took_effect: bool) -> None:
        """Check the answer of `commit_part` to the worker: whether its part is the committed one."""
        part = self._parts.get(uri)
        if part is None:
            raise ViolationError(f"{uri} does not exist, although a commit of it ended")
        if committed and not took_effect:
            raise ViolationError(f"{uri}: a commit without effect was confirmed")
        if not committed and part[0].commit == commit:
            raise ViolationError(
                f"{uri}: a worker dropped its part for another worker's, but its own is the committed one"
            )
        self.seen["part committed" if committed else "part dropped"] += 1

    def missing(self) -> Iterator[Shard]:
        """The shards without a part."""
        return (shard for uri, shard in self._shards.items() if uri not in self._parts)

    def may_be_abandoned(self, shard: Shard) -> bool:
        """Whether all its rows that are tried alone are poison, so that no single row is to blame."""
        num = min(MAX_ALONE, shard.num_rows)
        tried = [row_name(shard, i * shard.num_rows // num) for i in range(num)]
        return all(self._natures[row] is Nature.POISON for row in tried)

    def check_end(self) -> None:
        """Check that every row has the outcome of its nature, after a run and a retry without faults."""
        for shard in self.missing():
            if not self.may_be_abandoned(shard):
                raise ViolationError(f"{shard.name} has no part")
        for uri, (_, outcomes) in self._parts.items():
            if self.may_be_abandoned(self._shards[uri]):
                continue
            for row, outcome in outcomes.items():
                if outcome != self._natures[row].value:
                    raise ViolationError(f"{row} is {self._natures[row].name} and ended as {outcome}")
