"""Where a shard is tried again, and where a row is convicted, on machines one of which may be at fault."""

from collections.abc import Callable

from jobs.dispatch.dispatcher import Dispatcher
from jobs.dispatch.shard_record import Death
from schemas.job import Shard

ROWS = 4


def dispatcher(num_shards: int, max_attempts: int = 3, *, num_nodes: int = 2) -> Dispatcher:
    shards = [
        Shard(index=index, num_shards=9, uri="in.parquet", etag="e", model="sd", start=0, stop=ROWS)
        for index in range(num_shards)
    ]
    made = Dispatcher({"sd": iter(shards)}, {"sd": num_shards}, max_attempts=max_attempts)
    made.num_nodes = num_nodes
    return made


def taken(dispatcher: Dispatcher, worker: str) -> Shard:
    """The worker's next shard, of which there must be one."""
    shard = dispatcher.next_for(worker)
    assert shard is not None
    return shard


def made(dispatcher: Dispatcher, worker: str) -> Shard:
    """The worker's next shard, which it finishes."""
    shard = taken(dispatcher, worker)
    dispatcher.finish(worker, shard)
    return shard


def died(dispatcher: Dispatcher, worker: str, node: str) -> Death:
    """The worker's death; its successor on the same machine is ready at once."""
    death = dispatcher.lose(worker, "it died")
    dispatcher.join(worker, node)
    return death


def test_a_shard_that_failed_goes_to_another_machine() -> None:
    """The machine where it failed goes on with other shards."""
    given_out = dispatcher(2)
    given_out.join("a", "A")
    given_out.join("b", "B")
    failed = taken(given_out, "a")
    given_out.fail("a", failed, "an error")

    assert taken(given_out, "a") != failed
    assert given_out.next_for("a") is None
    assert taken(given_out, "b") == failed


def test_a_shard_that_failed_waits_for_another_machine_whose_worker_is_starting() -> None:
    """But not where no other machine can have workers, or where no worker is starting."""
    for num_nodes, num_starting, waits in ((2, 1, True), (1, 1, False), (2, 0, False)):
        given_out = dispatcher(1, num_nodes=num_nodes)
        given_out.join("a", "A")
        given_out.fail("a", taken(given_out, "a"), "an error")

        given_out.num_starting = num_starting

        assert (given_out.next_for("a") is None) is waits


def test_on_one_machine_a_shard_that_failed_goes_to_another_process() -> None:
    """If there is one."""
    given_out = dispatcher(2, num_nodes=1)
    given_out.join("a", "A")
    given_out.join("b", "A")
    failed = taken(given_out, "a")
    given_out.fail("a", failed, "an error")

    assert taken(given_out, "a") != failed
    assert taken(given_out, "b") == failed


def test_a_shard_is_not_left_out_because_of_what_one_of_two_machines_says() -> None:
    """However often it fails there: the other one has not said so yet."""
    given_out = dispatcher(1, max_attempts=3)
    given_out.join("a", "A")
    given_out.join("b", "B")
    given_out.fail("a", taken(given_out, "a"), "an error")
    taken(given_out, "b")
    given_out.lose("b", "it died")
    given_out.num_starting = 1
    given_out.fail("a", taken(given_out, "a"), "an error")

    assert given_out.abandoned == []

    given_out.join("b", "B")
    given_out.fail("b", taken(given_out, "b"), "an error")

    assert [lost.reason for lost in given_out.abandoned] == ["an error"]


class Machines:
    """A job on machines, each with one worker; `kills` says whether a shard kills the worker of a machine."""

    def __init__(
        self, nodes: str, num_shards: int, kills: Callable[[str, Shard], bool], max_attempts: int = 2
    ) -> None:
        self.dispatcher = dispatcher(num_shards, max_attempts, num_nodes=len(nodes))
        self._nodes = nodes
        self._kills = kills
        self.tried: list[tuple[str, tuple[int, int] | None, Death | None]] = []
        """The machine, the rehearsed rows, and what the death told, of each try with the last shard."""
        self.made: dict[int, tuple[int, ...]] = {}
        """The generated shards with the rows that were left out."""

    def run(self) -> "Machines":
        for node in self._nodes:
            self.dispatcher.join(node, node)
        while not self.dispatcher.finished:
            for node in self._nodes:
                if shard := self.dispatcher.next_for(node):
                    self._run(node, shard)
        return self

    def _run(self, node: str, shard: Shard) -> None:
        death = died(self.dispatcher, node, node) if self._kills(node, shard) else None
        if shard.index == POISONED:
            self.tried.append((node, shard.rehearse, death))
        if death is None:
            self.dispatcher.finish(node, shard)
            if shard.rehearse is None:
                self.made[shard.index] = shard.skip


POISONED, POISON = 0, 2
"""The shard and its row that kills."""


def has_poison(shard: Shard) -> bool:
    start, end = shard.rehearse or (0, ROWS)
    return shard.index == POISONED and POISON in range(start, end) and POISON not in shard.skip


def test_a_row_is_convicted_by_lone_deaths_on_two_machines() -> None:
    """One of them alone may be at fault."""
    job = Machines("AB", 6, lambda node, shard: has_poison(shard)).run()

    assert job.made == {POISONED: (POISON,)} | dict.fromkeys(range(1, 6), ())
    lone = [node for node, rows, death in job.tried if death and rows == (POISON, POISON + 1)]
    assert sorted(lone) == ["A", "B"]


def test_a_row_that_lives_on_another_machine_is_not_convicted() -> None:
    """The machine where it died is at fault; the shard is generated with it."""
    job = Machines("AB", 6, lambda node, shard: node == "A" and has_poison(shard), max_attempts=1).run()

    assert job.made == dict.fromkeys(range(6), ())
    assert job.dispatcher.abandoned == []
    assert any(rows == (POISON, POISON + 1) and node == "B" for node, rows, _ in job.tried)


def test_on_one_machine_a_process_shows_with_a_good_row_that_it_works() -> None:
    """Only then does its death convict."""
    job = Machines("A", 1, lambda node, shard: has_poison(shard)).run()

    assert job.made == {POISONED: (POISON,)}
    rows = [rows for _, rows, _ in job.tried]
    first, second = (i for i, each in enumerate(rows) if each == (POISON, POISON + 1))
    assert rows[first + 1 : second] == [(1, 2)]


def test_the_death_of_a_good_row_is_evidence_against_the_worker_and_no_other_rehearsal_is() -> None:
    """So that a machine that kills anything is found out, and the one that finds a row is not."""
    num_good_rows = 0

    def kills(node: str, shard: Shard) -> bool:
        nonlocal num_good_rows
        num_good_rows += shard.rehearse == (1, 2)
        return has_poison(shard) or (shard.rehearse == (1, 2) and num_good_rows == 2)

    job = Machines("A", 1, kills).run()

    assert job.made == {POISONED: (POISON,)}
    deaths = [(rows, death) for _, rows, death in job.tried if death]
    assert [rows for rows, _ in deaths][-3:] == [(POISON, POISON + 1), (1, 2), (POISON, POISON + 1)]
    assert {death for rows, death in deaths if rows is None} == {Death(shard=POISONED)}
    assert {death for rows, death in deaths if rows == (1, 2)} == {Death()}
    assert {death for rows, death in deaths if rows and POISON in range(*rows)} == {Death(expected=True)}


def test_a_worker_proves_itself_with_another_shard_before_it_rehearses() -> None:
    """As long as there is one."""
    given_out = dispatcher(3, max_attempts=1, num_nodes=1)
    given_out.join("a", "A")
    given_out.join("b", "A")
    suspect = taken(given_out, "a")
    died(given_out, "a", "A")
    made(given_out, "b")
    given_out.leave("b")

    proof = made(given_out, "a")
    rehearsal = taken(given_out, "a")

    assert (proof.index == suspect.index, proof.rehearse) == (False, None)
    assert (rehearsal.index, rehearsal.rehearse) == (suspect.index, (0, 1))
