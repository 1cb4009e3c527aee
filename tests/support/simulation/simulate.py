"""`make simulate`: many simulated jobs, and bugs planted in darkroom that the simulations must find.

`python -m tests.support.simulation.simulate --seeds 10000` runs the protocol and the bad machines with that
many seeds each. `--seed N` runs one simulation of the protocol and prints what happens.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from actors.parts.commit import PartIdentity, commit_part
from jobs.dispatch.dispatcher import Dispatcher
from jobs.dispatch.health import Health
from jobs.fleet import pool
from schemas.job import Shard
from schemas.wording.amounts import counted
from tests.support.simulation.bad_machine import random_scenario
from tests.support.simulation.simulated_store import SimulatedStore
from tests.support.simulation.simulated_time import ViolationError
from tests.support.simulation.simulator import Driver, Simulation, part_uri

SEEDS_TO_FIND_A_BUG = 2_000
Run = Callable[[int], object]
"""Runs the simulation of a seed; ViolationError if darkroom breaks a promise in it."""


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


def run_protocol(seed: int) -> Counter[str]:
    """One simulation of the protocol; how often each kind of event happened."""
    return Simulation(seed).simulate().seen


def run_bad_machine(seed: int) -> None:
    """One simulation of a bad machine."""
    random_scenario(seed).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """A mistake in darkroom that a simulation must find."""

    name: str
    run: Run
    planted: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Plants the bug within its block."""
    from_seed: int = 0
    """Where the search begins: a little before the seed that finds a rare bug."""

    def first_violation(self) -> tuple[int, ViolationError] | None:
        """The seed that finds it, and what was found."""
        with self.planted():
            return first_violation(range(self.from_seed, self.from_seed + SEEDS_TO_FIND_A_BUG), self.run)


def _of_protocol(kind: type[Simulation], from_seed: int = 0) -> Bug:
    return Bug(name=kind.__name__, run=lambda seed: kind(seed).simulate(), from_seed=from_seed)


def _of_fleet(name: str, target: Any, attribute: str, replacement: Any, from_seed: int = 0) -> Bug:
    return Bug(
        name=name,
        run=run_bad_machine,
        planted=lambda: patch.object(target, attribute, replacement),
        from_seed=from_seed,
    )


def _skip_at_once(self: Dispatcher, shard: Shard, record: Any) -> None:
    record.skip = tuple(sorted({*record.skip, *record.accused}))
    record.accused = []
    self._give_back(shard)


BUGS: Sequence[Bug] = (
    *map(_of_protocol, (Unconditional, TrustingTheListing, ForgettingTheAttempt)),
    _of_protocol(ReplacingWhatIsThere, from_seed=210),
    _of_fleet("BelievingTheFirst", Dispatcher, "_is_agreed", lambda self, places: True),
    _of_fleet("ConvictingAtOnce", Dispatcher, "_next_trial", _skip_at_once),
    _of_fleet("AnyMachineAgain", Dispatcher, "_may_go_elsewhere", lambda self, nodes: False, from_seed=150),
    _of_fleet("KeepingBadMachines", Health, "is_bad", lambda self, place: False),
    _of_fleet("EndingWithOneWorker", pool.WorkerPool, "_no_worker_can_start", lambda self: True),
)


def first_violation(seeds: range, run: Run = run_protocol) -> tuple[int, ViolationError] | None:
    """The first seed that breaks a promise, and the violation; None if there is none."""
    for seed in seeds:
        try:
            run(seed)
        except ViolationError as violation:
            return seed, violation
    return None


def _simulate(what: str, run: Run, seeds: range) -> bool:
    """Run these seeds, and print each violation; whether there was none."""
    started, num_violations, seen = time.monotonic(), 0, Counter[str]()
    for seed in seeds:
        try:
            seen.update(run(seed) or {})
        except ViolationError as violation:
            num_violations += 1
            print(f"{what}: seed {seed}: {violation}", flush=True)
    seconds = time.monotonic() - started
    print(
        f"{what}: {counted(len(seeds), 'seed')} in {seconds:.0f} s, {counted(num_violations, 'violation')} "
        f"{dict(seen) or ''}",
        flush=True,
    )
    return not num_violations


def _find_bugs() -> bool:
    """Plant each bug, and print which seed finds it; whether all were found."""
    num_found = 0
    for bug in BUGS:
        found = bug.first_violation()
        num_found += found is not None
        print(f"{bug.name}: {f'found by seed {found[0]}' if found else 'NOT FOUND'}", flush=True)
    print(f"planted bugs {len(BUGS)}, found {num_found}")
    return num_found == len(BUGS)


def main() -> int:
    """Run the simulations of the command line; 1 if there was a violation or a bug was not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.simulation.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="number of seeds (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    parser.add_argument("--seed", type=int, help="run only this seed of the protocol, and print what happens")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        Simulation(arguments.seed, tell=print).simulate()
        return 0
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    pool.logger.propagate = False
    is_right = [
        _simulate("protocol", run_protocol, seeds),
        _simulate("bad machine", run_bad_machine, seeds),
        _find_bugs(),
    ]
    return int(not all(is_right))


if __name__ == "__main__":
    sys.exit(main())
