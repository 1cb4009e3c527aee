"""One bad machine costs one machine: what healthy workers can generate is generated, and the log names it."""

from random import Random

import pytest

from tests.support.simulation.bad_machine import (
    BEHAVIOURS,
    CLUSTERS,
    SHARDS,
    Fails,
    Scenario,
    dies,
    has_no_memory,
)
from tests.support.simulation.pool_run import ROWS

SEEDS = 20


@pytest.mark.parametrize(("workers", "machines"), CLUSTERS)
@pytest.mark.parametrize("fails", BEHAVIOURS)
def test_one_bad_machine_costs_no_shard_and_no_row(fails: Fails, workers: int, machines: int) -> None:
    """Bad from the beginning or any moment on: a poison row is still found, and no other one convicted."""
    for seed in range(SEEDS):
        poison = Random(seed).choice((None, (seed % SHARDS, seed % ROWS)))
        Scenario(fails=fails, workers=workers, machines=machines, poison=poison, seed=seed).run()


def test_a_poison_row_among_a_thousand_is_found_alone() -> None:
    """On four machines, each of which it kills a worker of, and one of which kills by itself."""
    Scenario(fails=dies, workers=8, machines=4, poison=(100, 3), seed=0, num_shards=1000 // ROWS).run()


def test_the_log_names_a_machine_that_was_found_out_at_the_end() -> None:
    """The job ends before the driver looks at its machines again."""
    Scenario(fails=has_no_memory, workers=8, machines=4, seed=2, num_shards=12).run()
