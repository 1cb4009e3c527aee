"""One bad machine costs one machine: what healthy workers can generate is generated, and the log names it."""

from collections.abc import Callable
from random import Random

import pytest

from jobs.dispatch.health import MAX_FAILURES
from schemas.errors import DeviceError
from schemas.job import Shard, ShardReport
from tests.support.simulation.pool_run import FOREVER, ROWS, Run, Worker

SEEDS = 20
BAD = "machine-0"
SHARDS = 60
Poison = tuple[int, int]
"""A shard and a row of it that kills every worker."""


def bad_machine(
    fails: Callable[[Worker], object], begins_s: float, poison: Poison | None, random: Random
) -> type[Worker]:
    """Workers that fail so on the bad machine, from this moment on; `poison` kills them everywhere."""

    class OnSomeMachine(Worker):
        @property
        def is_broken(self) -> bool:
            return self.actor.machine == BAD and self.clock.now_s >= begins_s

        def ready(self) -> bool:
            self.clock.thread.sleep(random.uniform(1, 5))
            if self.is_broken and fails is cannot_start:
                raise RuntimeError("no CUDA-capable device is detected")
            return True

        def generate(self, shard: Shard) -> ShardReport:
            self.work(1)
            if self.is_broken and fails is not cannot_start:
                fails(self)
            first, end = shard.rehearse or (0, shard.num_rows)
            rows = {(shard.index, row) for row in range(first, end) if row not in shard.skip}
            if poison in rows:
                self.actor.die()
            return super().generate(shard)

    return OnSomeMachine


def left_out(run: Run) -> set[tuple[int, int]]:
    """The rows without which shards were generated, each with its shard."""
    return {(shard.index, row) for shard in run.given if not shard.rehearse for row in shard.skip}


def cannot_start(worker: Worker) -> None:
    """Its engine is never ready."""


def dies(worker: Worker) -> None:
    worker.actor.die()


def raises(worker: Worker) -> None:
    raise RuntimeError("cuBLAS is not initialised")


def loses_its_device(worker: Worker) -> None:
    raise DeviceError("CUDA error: unspecified launch failure")


def hangs(worker: Worker) -> None:
    worker.clock.thread.sleep(FOREVER)


@pytest.mark.parametrize("poison", [None, (17, 2)], ids=["", "poison"])
@pytest.mark.parametrize(("workers", "machines"), [(2, 2), (4, 2), (8, 4), (32, 4)])
@pytest.mark.parametrize("fails", [cannot_start, dies, raises, loses_its_device, hangs])
def test_one_bad_machine_costs_no_shard_and_no_row(
    fails: Callable[[Worker], object],
    workers: int,
    machines: int,
    poison: Poison | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Bad from the beginning or any moment on: a poison row is still found, and no other one convicted."""
    for seed in range(SEEDS):
        random = Random(seed)
        begins_s = random.choice((0.0, random.uniform(0, 2 * SHARDS / workers)))
        kind = bad_machine(fails, begins_s, poison, random)
        caplog.clear()

        run = Run(then=kind, num=workers, machines=machines, shards={"sd": SHARDS}).run()

        assert run.error is None, seed
        assert run.reported == [*range(SHARDS)], seed
        assert run.dispatcher.abandoned == [], seed
        assert left_out(run) == ({poison} if poison else set()), seed
        if begins_s == 0 and fails is not hangs:
            assert f"machine={BAD} is left out: {MAX_FAILURES} shards or starts in a row" in caplog.text, seed


def test_a_poison_row_among_a_thousand_is_found_alone() -> None:
    """On four machines, each of which it kills a worker of."""
    poison = (100, 3)
    kind = bad_machine(dies, float("inf"), poison, Random(0))

    run = Run(then=kind, num=8, machines=4, shards={"sd": 1000 // ROWS}).run()

    assert run.error is None
    assert len(run.reported) == 1000 // ROWS
    assert left_out(run) == {poison}
