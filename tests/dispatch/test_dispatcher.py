"""Which shard goes to whom next, without Ray."""

import random
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dispatch.dispatcher import Dispatcher
from schemas.errors import DarkroomError
from schemas.job import Shard
from schemas.output_layout import shard_name


def shard(index: int, model: str = "sd") -> Shard:
    return Shard(
        index=index,
        name=shard_name(index, 1000),
        uri="in.parquet",
        etag="e",
        model=model,
        start=index,
        stop=index + 1,
    )


def dispatcher(counts: dict[str, int], max_attempts: int = 3) -> Dispatcher:
    """A dispatcher over `counts` shards per model, numbered through."""
    shards: dict[str, list[Shard]] = {}
    first = 0
    for model, count in counts.items():
        shards[model] = [shard(first + i, model) for i in range(count)]
        first += count
    return Dispatcher(shards, max_attempts=max_attempts)


def test_a_worker_keeps_the_model_it_has_loaded() -> None:
    """Loading a checkpoint costs more than any wait: affinity comes before balance."""
    given_out = dispatcher({"sd": 50, "xl": 3})
    given_out.join("w")

    first = given_out.next_for("w", loaded=("sd", "xl"))

    assert first is not None
    assert first.model == "xl"


def test_workers_spread_over_models_by_what_is_left() -> None:
    """Two idle workers and two models of equal weight: each worker loads one."""
    given_out = dispatcher({"sd": 10, "xl": 10})
    given_out.join("a")
    given_out.join("b")

    models = {shard.model for worker in "ab" if (shard := given_out.next_for(worker))}

    assert models == {"sd", "xl"}


def test_workers_at_work_with_a_model_count_against_it() -> None:
    """The second worker loads the model of which fewer shards wait, since nobody has it yet."""
    given_out = dispatcher({"sd": 10, "xl": 6})
    given_out.join("a")
    given_out.join("b")

    models = [shard.model for worker in "ab" if (shard := given_out.next_for(worker))]

    assert models == ["sd", "xl"]


@pytest.mark.parametrize("gone", ["leave", "lose"])
def test_a_worker_that_is_gone_does_not_count(gone: str) -> None:
    """The next one loads the model of which most shards wait."""
    given_out = dispatcher({"sd": 10, "xl": 6})
    given_out.join("a")
    given_out.next_for("a")
    if gone == "leave":
        given_out.leave("a")
    else:
        given_out.lose("a", "it died")
    given_out.join("b")

    taken = given_out.next_for("b")

    assert taken is not None
    assert taken.model == "sd"


def test_a_worker_holds_two_shards_and_no_more() -> None:
    """The second is read while the first is on the device; a third would only be lost with the worker."""
    given_out = dispatcher({"sd": 10})
    given_out.join("w")

    held = [given_out.next_for("w") for _ in range(3)]

    assert [each is None for each in held] == [False, False, True]


def test_a_worker_ends_one_model_before_it_begins_another() -> None:
    """With both in flight, a cache with room for one would load them in turns."""
    given_out = dispatcher({"sd": 1, "xl": 9})
    given_out.join("w")
    last = given_out.next_for("w", loaded=("sd",))
    assert last is not None
    assert last.model == "sd"

    assert given_out.next_for("w", loaded=("sd",)) is None
    given_out.finish("w", last)

    following = given_out.next_for("w", loaded=("sd",))
    assert following is not None
    assert following.model == "xl"


def test_in_the_last_wave_each_worker_gets_one() -> None:
    """With two shards and two workers, the first to ask does not take both."""
    given_out = dispatcher({"sd": 2})
    given_out.join("a")
    given_out.join("b")
    given_out.next_for("a")

    assert given_out.next_for("a") is None
    assert given_out.next_for("b") is not None


def generated(
    given_out: Dispatcher, workers: list[str], under_way: Mapping[str, list[Shard]] | None = None
) -> dict[str, list[int]]:
    """The indices of the shards that each worker generates until none is left; which one ends is random."""
    dice = random.Random(0)
    held = {worker: [*(under_way or {}).get(worker, [])] for worker in workers}
    by_worker: dict[str, list[int]] = {worker: [] for worker in workers}
    while not given_out.finished:
        for worker in workers:
            while shard := given_out.next_for(worker):
                held[worker].append(shard)
        worker = dice.choice([worker for worker in workers if held[worker]])
        done = held[worker].pop(0)
        given_out.finish(worker, done)
        by_worker[worker].append(done.index)
    return by_worker


def test_workers_generate_neighbouring_shards() -> None:
    """So that few row groups are read by several of them, and each about once by one."""
    num_shards, num_workers = 4_000, 10
    given_out = dispatcher({"sd": num_shards})
    workers = [f"w{i}" for i in range(num_workers)]
    for worker in workers:
        given_out.join(worker)

    by_worker = generated(given_out, workers)

    neighbours = sum(second == first + 1 for each in by_worker.values() for first, second in pairwise(each))
    groups_read = sum(len({index // 100 for index in each}) for each in by_worker.values())
    backward = sum(second < first for each in by_worker.values() for first, second in pairwise(each))
    assert sorted(index for each in by_worker.values() for index in each) == [*range(num_shards)]
    assert neighbours > 0.98 * num_shards
    assert groups_read < 2.5 * num_shards / 100
    assert backward <= 4 * num_workers


def test_one_worker_goes_through_the_shards_in_their_order() -> None:
    """Nobody has taken any of them, so it begins with the first."""
    given_out = dispatcher({"sd": 50})
    given_out.join("w")

    assert generated(given_out, ["w"])["w"] == [*range(50)]


@pytest.mark.parametrize("successor", ["a", "c"])
def test_what_a_worker_leaves_of_its_neighbours_is_generated_by_others(successor: str) -> None:
    """By the next process of its name from where it was, and at the end by whoever has time."""
    given_out = dispatcher({"sd": 40})
    for worker in ("a", "b"):
        given_out.join(worker)
    held = [shard for worker in "aabb" if (shard := given_out.next_for(worker))]
    given_out.leave("a")
    given_out.join(successor)

    by_worker = generated(given_out, ["b", successor], {"b": held[2:]})

    assert [shard.index for shard in held] == [0, 1, 21, 22]
    assert sorted(index for each in by_worker.values() for index in each) == [*range(40)]


def test_what_a_dead_worker_held_is_made_shard_by_shard() -> None:
    """Alone, so that the next death tells which of them it was; the one that it was at comes first."""
    given_out = dispatcher({"sd": 2}, max_attempts=1)
    given_out.join("a")
    head, ahead = given_out.next_for("a"), given_out.next_for("a")
    given_out.lose("a", "killed")
    given_out.join("b")

    first, beside = given_out.next_for("b"), given_out.next_for("b")
    assert first is not None
    given_out.finish("b", first)
    second = given_out.next_for("b")

    assert (first, beside, second) == (head, None, ahead)
    assert given_out.abandoned == []


def test_a_shard_that_cannot_be_made_is_abandoned_after_max_attempts_with_its_last_reason() -> None:
    """Its worker lives and says why: no row is searched for."""
    given_out = dispatcher({"sd": 1}, max_attempts=2)
    given_out.join("w")
    for reason in ("first", "second"):
        held = given_out.next_for("w")
        assert held is not None
        given_out.fail("w", held, reason)

    assert given_out.finished
    assert [lost.reason for lost in given_out.abandoned] == ["second"]


def test_a_shard_with_which_every_worker_is_taken_away_is_left_out() -> None:
    """It would go round for ever; the others are made."""
    given_out = dispatcher({"sd": 2})
    made = []
    for _ in range(50):
        given_out.join("w")
        taken = given_out.next_for("w")
        if taken and taken.index == 0:
            given_out.leave("w")
        elif taken:
            made.append(taken.index)
            given_out.finish("w", taken)

    assert given_out.finished
    assert made == [1]
    (left_out,) = given_out.abandoned
    assert left_out.shard.index == 0
    assert "20 workers were taken away with it" in left_out.reason


def test_a_preempted_worker_charges_nothing() -> None:
    """The machine was taken away; no shard is to blame."""
    given_out = dispatcher({"sd": 1}, max_attempts=1)
    given_out.join("a")
    given_out.next_for("a")

    given_out.leave("a")

    assert given_out.abandoned == []
    assert given_out.num_waiting == 1


EVENTS = st.lists(
    st.tuples(st.sampled_from(["take", "finish", "fail", "lose", "leave"]), st.integers(0, 3)), max_size=200
)


@settings(deadline=None)
@given(counts=st.dictionaries(st.sampled_from("abc"), st.integers(1, 12), min_size=1), events=EVENTS)
def test_every_shard_is_finished_or_abandoned_once_whatever_happens(
    counts: dict[str, int], events: list[tuple[str, int]]
) -> None:
    """No shard is lost, made twice at the same time, or given out after its end."""
    given_out = dispatcher(counts)
    held: dict[str, list[Shard]] = {f"w{i}": [] for i in range(4)}
    for worker in held:
        given_out.join(worker)
    ended: list[int] = []

    def act(event: str, worker: str) -> None:
        mine = held[worker]
        if event == "take":
            taken = given_out.next_for(worker)
            if taken:
                mine.append(taken)
        elif event in ("lose", "leave"):
            getattr(given_out, event)(*([worker, "died"] if event == "lose" else [worker]))
            mine.clear()
            given_out.join(worker)
        elif mine:
            done = mine.pop(0)
            if event == "finish":
                given_out.finish(worker, done)
                if done.rehearse is None:
                    ended.append(done.index)
            else:
                given_out.fail(worker, done, "raised")
        in_flight = [each.index for shards in held.values() for each in shards]
        assert len(in_flight) == len(set(in_flight))
        assert not set(in_flight) & set(ended)

    for event, worker in events:
        try:
            act(event, f"w{worker}")
        except DarkroomError:
            return  # nothing but deaths: the job ends
    while not given_out.finished:
        for worker in held:
            act("take", worker)
            act("finish", worker)

    abandoned = [lost.shard.index for lost in given_out.abandoned]
    assert sorted(ended + abandoned) == list(range(sum(counts.values())))


def test_nothing_left_means_no_shard() -> None:
    """An idle worker is told so."""
    given_out = dispatcher({"sd": 1})
    given_out.join("w")
    only = given_out.next_for("w")
    assert only is not None
    given_out.finish("w", only)

    assert given_out.next_for("w") is None
    assert given_out.finished


def test_an_unknown_worker_is_our_own_mistake() -> None:
    """Asking for a worker that never joined is a bug, not a silent None."""
    with pytest.raises(KeyError):
        dispatcher({"sd": 1}).next_for("nobody")
