"""The protocol in hundreds of simulated jobs, and bugs that the simulations must find.

`make simulate` runs ten thousand.
"""

from collections import Counter

import pytest

from tests.support.simulation.simulate import BUGS, Bug, first_violation
from tests.support.simulation.simulator import Simulation

SEEDS = 600
CHUNK = 150
KINDS = {
    *("part committed", "part dropped", "part rewritten"),
    *("crash", "cut off", "told to end", "zombie's commit"),
    *("lost reply", "late write", "stale listing"),
}


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_the_protocol(first: int) -> None:
    """Crashes, zombies, second drivers, lost requests and replies, stale listings: the output is right."""
    found = first_violation(range(first, first + CHUNK))

    assert found is None, f"python -m tests.support.simulation.simulate --seed {found[0]}: {found[1]}"


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_a_planted_bug_is_found(bug: Bug) -> None:
    """A simulator that finds none would prove nothing."""
    found = bug.first_violation()

    assert found is not None
    # Shown by `pytest -rP`.
    print(f"{bug.name}: seed {found[0]}: {found[1]}")


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
