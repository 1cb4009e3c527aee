"""Where a shard is tried again, and where a row is convicted, on machines one of which may be at fault."""

from collections.abc import Callable, Collection
from dataclasses import replace

import pytest

from jobs.dispatch.dispatcher import Dispatcher
from jobs.dispatch.shard_record import Death, Finish
from schemas.errors import DEVICE_DEPENDENT, StorageError
from schemas.job import Shard
from tests.support.simulation.pool_run import ROWS, shard_of


def dispatcher(num_shards: int, max_attempts: int = 3, *, num_nodes: int = 2) -> Dispatcher:
    shards = [shard_of(index, num_shards, "sd") for index in range(num_shards)]
    made = Dispatcher({"sd": shards}, max_attempts=max_attempts)
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


def test_a_shard_that_failed_waits_for_another_worker_that_is_starting() -> None:
    """On one machine for another process. But not where no worker is starting."""
    for num_nodes, num_starting, waits in ((2, 1, True), (1, 1, True), (2, 0, False), (1, 0, False)):
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
    shard = taken(given_out, "a")
    given_out.num_starting = 1
    given_out.fail("a", shard, "an error")

    assert given_out.abandoned == []

    given_out.join("b", "B")
    given_out.fail("b", taken(given_out, "b"), "an error")

    assert [lost.reason for lost in given_out.abandoned] == ["an error"]


def test_rows_that_one_worker_could_not_generate_are_tried_by_another() -> None:
    """On another machine if there is one, and only the rows whose failure may be the machine's fault."""
    given_out = dispatcher(3, num_nodes=2)
    for worker, node in (("a", "A"), ("a2", "A"), ("b", "B")):
        given_out.join(worker, node)
    shard = taken(given_out, "a")

    assert given_out.finish("a", shard, num_failed=2) == Finish(final=False)
    assert not given_out.finished
    assert taken(given_out, "a2").index != shard.index
    again = taken(given_out, "b")
    assert (again.index, again.again) == (shard.index, tuple(sorted(DEVICE_DEPENDENT)))


@pytest.mark.parametrize(("num_failed", "says_something"), [(0, True), (1, True), (2, False), (3, False)])
def test_rows_that_another_worker_generated_speak_against_the_first(
    num_failed: int, says_something: bool
) -> None:
    """What fails there too is the row's fault, and the shard is done."""
    given_out = dispatcher(1)
    for worker in ("a", "b"):
        given_out.join(worker, "A")
    given_out.finish("a", taken(given_out, "a"), num_failed=2)

    finish = given_out.finish("b", taken(given_out, "b"), num_failed)

    assert finish.final
    assert (finish.failed_alone is not None) is says_something
    assert finish.failed_alone is None or finish.failed_alone.worker == "a"
    assert given_out.finished


def test_what_a_worker_alone_could_not_generate_has_failed() -> None:
    """Nobody else can be asked."""
    given_out = dispatcher(1)
    given_out.join("a", "A")

    assert given_out.finish("a", taken(given_out, "a"), num_failed=2) == Finish()
    assert given_out.finished


@pytest.mark.parametrize(
    ("retried", "again"),
    [((), DEVICE_DEPENDENT), (("out_of_memory", "worker_crash"), {"out_of_memory"})],
)
def test_another_worker_tries_no_rows_that_a_retry_leaves_as_they_are(
    retried: tuple[str, ...], again: Collection[str]
) -> None:
    """A retry may be for some codes only."""
    shard = replace(shard_of(0, 1, "sd"), again=retried)
    given_out = Dispatcher({"sd": [shard]}, max_attempts=3)
    for worker in ("a", "b"):
        given_out.join(worker, "A")
    given_out.finish("a", taken(given_out, "a"), num_failed=1)

    assert taken(given_out, "b").again == tuple(sorted(again))


def test_a_rehearsal_in_which_no_row_could_be_generated_shows_nothing_until_two_workers_say_so() -> None:
    """A row that is not generated cannot kill."""
    given_out = dispatcher(1, max_attempts=1)
    given_out.join("a", "A")
    given_out.join("b", "B")
    taken(given_out, "a")
    died(given_out, "a", "A")
    rehearsal = taken(given_out, "b")

    assert given_out.finish("b", rehearsal, num_failed=1) == Finish(final=False)
    assert given_out.next_for("b") is None
    assert taken(given_out, "a") == rehearsal
    assert given_out.finish("a", rehearsal, num_failed=1) == Finish()
    assert taken(given_out, "b").rehearse != rehearsal.rehearse


def test_an_error_of_the_storage_ends_the_job_once_two_workers_say_it_of_a_shard() -> None:
    """Until then it is the worker's own trouble."""
    given_out = dispatcher(2, num_nodes=2)
    for worker, node in (("a", "A"), ("a2", "A"), ("b", "B")):
        given_out.join(worker, node)
    shard = taken(given_out, "a")
    given_out.refuse("a", shard, StorageError("the bucket is gone"))
    assert taken(given_out, "a2") != shard

    with pytest.raises(StorageError, match="the bucket is gone"):
        given_out.refuse("b", taken(given_out, "b"), StorageError("the bucket is gone"))


def test_two_processes_of_one_machine_do_not_speak_for_another_machine() -> None:
    """It has joined only after the first had refused the shard."""
    given_out = dispatcher(1, num_nodes=2)
    for worker in ("a", "a2"):
        given_out.join(worker, "A")
    given_out.refuse("a", taken(given_out, "a"), StorageError("the bucket is gone"))
    shard = taken(given_out, "a2")
    given_out.join("b", "B")

    given_out.refuse("a2", shard, StorageError("the bucket is gone"))

    assert taken(given_out, "b") == shard


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
