"""Which row of a shard takes its worker down, without Ray: the search, and the dispatcher that runs it."""

from collections.abc import Set
from math import ceil, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dispatch.dispatcher import MAX_POISON_ROWS, Dispatcher
from jobs.dispatch.poison import MAX_ALONE, Search
from jobs.dispatch.shard_queue import MAX_DYING_SHARDS
from schemas.errors import DarkroomError
from schemas.job import Shard
from schemas.output_layout import shard_name


def shard(index: int, rows: int) -> Shard:
    return Shard(
        index=index, name=shard_name(index, 100), uri="in.parquet", etag="e", model="sd", start=0, stop=rows
    )


class Simulation:
    """A job whose workers die of certain rows: (shard, row)."""

    def __init__(
        self, sizes: list[int], poison: Set[tuple[int, int]], *, workers: int = 1, max_attempts: int = 3
    ) -> None:
        shards = [shard(index, rows) for index, rows in enumerate(sizes)]
        self.dispatcher = Dispatcher({"sd": shards}, max_attempts=max_attempts)
        self.poison = poison
        self.workers = [f"w{i}" for i in range(workers)]
        self.ready: set[str] = set()
        self.deaths: list[Shard] = []
        """What their workers were at."""
        self.rehearsed: list[int] = []
        """Shards."""
        self.made: dict[int, tuple[int, ...]] = {}
        """Shards with the rows that were left out."""

    def run(self) -> "Simulation":
        held: dict[str, list[Shard]] = {worker: [] for worker in self.workers}
        while not self.dispatcher.finished:
            for worker, mine in held.items():
                if worker not in self.ready:
                    self.dispatcher.join(worker)
                    self.ready.add(worker)
                while taken := self.dispatcher.next_for(worker):
                    mine.append(taken)
            for worker, mine in held.items():
                self._work(worker, mine)
        return self

    def _work(self, worker: str, mine: list[Shard]) -> None:
        if not mine:
            return
        at = mine[0]
        assert len(mine) == 1 or not any(each.rehearse for each in mine)
        # The next one is opened already, and is on the device while the one before is written.
        if any(map(self.kills, mine)):
            self.deaths.append(at)
            mine.clear()
            self.ready.remove(worker)
            self.dispatcher.lose(worker, "its worker died")
            return
        mine.remove(at)
        self.dispatcher.finish(worker, at)
        if at.rehearse:
            self.rehearsed.append(at.index)
        else:
            assert at.index not in self.made
            self.made[at.index] = at.skip

    def kills(self, at: Shard) -> bool:
        start, stop = at.rehearse or (0, at.num_rows)
        return any((at.index, row) in self.poison for row in range(start, stop) if row not in at.skip)


def bound(rows: int) -> int:
    """Deaths that finding one row may cost, and one more that convicts it."""
    return max(1, ceil(log2(rows))) + 1


@pytest.mark.parametrize("row", [0, 1, 500, 733, 998, 999])
def test_one_poison_row_among_1000_costs_three_deaths_and_log2_of_the_shard(row: int) -> None:
    """The 999 others are made."""
    job = Simulation([1000], {(0, row)}).run()

    assert job.made == {0: (row,)}
    assert len(job.deaths) <= 3 + bound(1000)
    # Each new process first shows with a row that lived before that it can generate anything.
    assert len(job.rehearsed) <= 2 * (1 + 10)
    assert job.dispatcher.abandoned == []


@settings(deadline=None)
@given(
    rows=st.integers(1, 64),
    poison=st.sets(st.integers(0, 63), max_size=3),
    workers=st.integers(1, 3),
    max_attempts=st.integers(1, 4),
)
def test_every_poison_row_is_found_and_no_other(
    rows: int, poison: set[int], workers: int, max_attempts: int
) -> None:
    """Up to three in a shard of any size, beside shards that are whole."""
    poison = {row for row in poison if row < rows}

    job = Simulation(
        [8, rows, 8, 8], {(1, row) for row in poison}, workers=workers, max_attempts=max_attempts
    ).run()

    assert job.made == {0: (), 1: tuple(sorted(poison)), 2: (), 3: ()}
    assert {*job.rehearsed} <= {1}
    # The first death may have come while another shard was in the same worker; a row more is noticed by one.
    company = 1 if max_attempts == 1 else 0
    assert len(job.deaths) <= company + max_attempts + len(poison) * (1 + bound(rows))
    if len(poison) == 1:
        assert len(job.deaths) <= company + max_attempts + bound(rows)


def test_a_row_is_found_only_by_dying_alone() -> None:
    """By exclusion alone it would be blamed for what another thing did."""
    search = Search(range(2))
    search.survived()

    assert (search.next, search.found) == ((0, 1), []) or (search.next, search.found) == ((1, 2), [])
    search.died()

    assert len(search.found) == 1
    assert search.next is None


def test_a_shard_that_died_of_something_else_is_made_after_all() -> None:
    """Three workers killed from outside: no row is blamed, and the shard has three attempts more."""
    job = Simulation([16], set())
    for _ in range(3):
        job.dispatcher.join("w0")
        job.dispatcher.next_for("w0")
        job.dispatcher.lose("w0", "killed")

    job.run()

    assert job.made == {0: ()}
    assert job.rehearsed


class Together(Simulation):
    """Rows that kill only when many of them are made at once."""

    def kills(self, at: Shard) -> bool:
        start, stop = at.rehearse or (0, at.num_rows)
        return stop - start > 8


def test_a_shard_whose_rows_kill_only_together_is_abandoned_after_the_second_search() -> None:
    """With the reason of the last death, and what was tried."""
    job = Together([16, 4], set()).run()

    assert job.made == {1: ()}
    assert [lost.shard.index for lost in job.dispatcher.abandoned] == [0]
    assert job.dispatcher.abandoned[0].reason == "its worker died. None of its rows does this alone"


def test_a_shard_of_poison_rows_is_given_up_without_a_search() -> None:
    """Rows tried alone show it: their file may be what kills, or all of them."""
    job = Simulation([64, 4], {(0, row) for row in range(64)}).run()

    assert job.made == {1: ()}
    assert len(job.deaths) == 3 + MAX_ALONE
    assert "Each of its rows that was tried alone does this too" in job.dispatcher.abandoned[0].reason


def test_a_shard_with_too_many_poison_rows_is_abandoned() -> None:
    """Each of them costs workers."""
    poison = {(0, row) for row in range(1, 40, 2)}

    job = Simulation([41], poison).run()

    assert job.made == {}
    assert f"It was generated without {MAX_POISON_ROWS} rows" in job.dispatcher.abandoned[0].reason


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("rows", [1, 64])
def test_a_model_whose_shards_all_die_ends_the_job_early(workers: int, rows: int) -> None:
    """A broken driver, say: not a death of each of 100 shards, let alone a search in each."""
    everything = {(index, row) for index in range(100) for row in range(rows)}
    job = Simulation([rows] * 100, everything, workers=workers)

    with pytest.raises(
        DarkroomError, match=r"every shard of the model 'sd' takes its worker down.*worker died"
    ):
        job.run()

    assert len({dead.index for dead in job.deaths}) >= MAX_DYING_SHARDS
    assert len(job.deaths) <= MAX_DYING_SHARDS + (3 + MAX_ALONE) * workers


@pytest.mark.parametrize("workers", [1, 8])
def test_many_shards_with_a_poison_row_each_are_no_reason_to_stop(workers: int) -> None:
    """Where other rows of theirs can be made; also when many of them are searched at once."""
    rows = {index: 63 if index % 2 else 1 for index in range(12)}

    job = Simulation([64] * 12, {*rows.items()}, workers=workers).run()

    assert job.made == {index: (row,) for index, row in rows.items()}


def test_a_rehearsal_has_its_worker_to_itself() -> None:
    """Another shard's death would be taken for its own."""
    given_out = Dispatcher({"sd": [shard(index, 8) for index in range(9)]}, max_attempts=1)
    given_out.join("a")
    given_out.join("b")
    first, beside = given_out.next_for("a"), given_out.next_for("b")
    assert first is not None
    assert beside is not None
    given_out.lose("a", "died")
    given_out.finish("b", beside)
    given_out.join("a")

    # It goes to the worker that has shown that it works.
    alone = given_out.next_for("b")

    assert alone is not None
    assert (alone.index, alone.rehearse) == (first.index, (0, 1))
    assert given_out.next_for("b") is None


def test_after_a_death_another_shard_shows_first_that_any_can_be_made() -> None:
    """A model that kills every worker is noticed after a handful of shards, not within the first."""
    given_out = Dispatcher({"sd": [shard(index, 8) for index in range(9)]}, max_attempts=3)
    given_out.join("w")
    dying = given_out.next_for("w")
    assert dying is not None
    given_out.lose("w", "died")
    given_out.join("w")

    other = given_out.next_for("w")
    assert other is not None
    given_out.finish("w", other)

    assert other.index != dying.index
    assert given_out.next_for("w") == dying


def test_rows_that_were_not_tried_alone_are_not_left_out_with_those_that_died() -> None:
    """If each row that is tried kills, something else is at fault, even where other shards are generated."""
    simulation = Simulation([8, 8], {(1, row) for row in range(8)}).run()

    assert [lost.shard.index for lost in simulation.dispatcher.abandoned] == [1]
    assert simulation.made == {0: ()}


def test_a_shard_of_which_nothing_was_generated_is_no_sign_of_life() -> None:
    """Shards of one row that kills end well without it; the next death still counts as one more in a row."""
    shards = [shard(index, 1) for index in range(MAX_DYING_SHARDS)]
    job = Dispatcher({"sd": shards}, max_attempts=1, working=("sd",))
    job.join("other")
    held = job.next_for("other")

    def next_one() -> Shard:
        job.join("one")
        taken = job.next_for("one")
        assert taken is not None
        return taken

    while job.num_waiting:
        if next_one().skip:
            job.finish("one", job._workers["one"].in_flight[0])
        else:
            job.lose("one", "it died")
    job.lose("other", "it died")
    next_one()

    assert held == shards[0]
    with pytest.raises(DarkroomError, match="takes its worker down, 5 of them in a row"):
        job.lose("one", "it died")
