"""The protocol in thousands of simulated jobs, and bugs that the simulator must find."""

from collections import Counter
from collections.abc import Mapping

import pytest

from actors.parts.commit import PartIdentity, commit_part
from schemas.job import Shard
from tests.support.simulation.simulated_store import SimulatedStore
from tests.support.simulation.simulator import Driver, Simulation, first_violation, part_uri

SEEDS = 3_000
CHUNK = 500
SEEDS_TO_FIND_A_BUG = 2_000
KINDS = {
    *("part committed", "part dropped", "part rewritten"),
    *("crash", "cut off", "told to end", "zombie's commit"),
    *("lost reply", "late write", "stale listing"),
}


class Unconditional(Simulation):
    """Parts are written by a PUT without a condition."""

    def commit_part(
        self, shard: Shard, data: bytes, attempt: str, replaces: str | None, driver: Driver
    ) -> bool:
        return self.store.write(part_uri(shard), data, self.metadata(shard, attempt))

    def metadata(self, shard: Shard, attempt: str) -> Mapping[str, str]:
        return {"job": self.job, "shard": shard.name, "attempt": attempt}


class TrustingTheListing(Unconditional):
    """A driver that finds parts takes those that it does not see as not there, and has them written so."""

    def commit_part(
        self, shard: Shard, data: bytes, attempt: str, replaces: str | None, driver: Driver
    ) -> bool:
        if any(driver.done) and replaces is None:
            return super().commit_part(shard, data, attempt, replaces, driver)
        return Simulation.commit_part(self, shard, data, attempt, replaces, driver)


class ForgetfulStore(SimulatedStore):
    """A request that is repeated leaves the attempt's id out."""

    def _sent(self, metadata: Mapping[str, str], tries: int) -> Mapping[str, str]:
        if tries == 1:
            return metadata
        return {name: value for name, value in metadata.items() if name != "attempt"}


class ForgettingTheAttempt(Simulation):
    """What is done twice is done under another name."""

    def open_store(self) -> SimulatedStore:
        return ForgetfulStore(self.clock, self.random, self.faults, self.model.written)


class ReplacingWhatIsThere(Simulation):
    """A retry names the etag that it finds at the end, not that of the part whose rows it keeps."""

    def commit_part(
        self, shard: Shard, data: bytes, attempt: str, replaces: str | None, driver: Driver
    ) -> bool:
        uri = part_uri(shard)
        if replaces is not None:
            stored = self.store.stat(uri)
            replaces = stored and stored.etag
        return commit_part(
            self.store,
            uri,
            data,
            PartIdentity(job=self.job, shard=shard.name),
            attempt=attempt,
            replaces=replaces,
        )


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_the_protocol(first: int) -> None:
    """Crashes, zombies, second drivers, lost requests and replies, stale listings: the output is right."""
    found = first_violation(range(first, first + CHUNK))

    assert found is None, f"python -m tests.support.simulation.simulator --seed {found[0]}: {found[1]}"


@pytest.mark.parametrize(
    "bug",
    [
        Unconditional,
        TrustingTheListing,
        ForgettingTheAttempt,
        ReplacingWhatIsThere,
    ],
)
def test_a_planted_bug_is_found(bug: type[Simulation]) -> None:
    """A simulator that finds none would prove nothing."""
    found = first_violation(range(SEEDS_TO_FIND_A_BUG), bug)

    assert found is not None
    # Shown by `pytest -rP`.
    print(f"{bug.__name__}: seed {found[0]}: {found[1]}")


def test_a_seed_replays() -> None:
    """Twice the same seed, twice the same story to the last line."""

    def story(seed: int) -> list[str]:
        lines: list[str] = []
        Simulation(seed, tell=lines.append).simulate()
        return lines

    assert [story(seed) for seed in range(20)] == [story(seed) for seed in range(20)]


def test_what_is_to_be_survived_does_happen() -> None:
    """Nothing is proved by faults that never come."""
    seen = sum((Simulation(seed).simulate().seen for seed in range(100)), Counter[str]())

    assert seen.keys() >= KINDS
