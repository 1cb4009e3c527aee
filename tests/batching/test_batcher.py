"""Calls run side by side: each gets what it would get alone, and modules are asked in full batches."""

from statistics import mean
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pipelines.toy_pipeline import (
    PlainCall,
    ToyCall,
    ToyModel,
    alone,
    assert_same,
    batcher_of,
    call,
    plain_calls,
    run,
    running,
)


def varied(model: ToyModel, count: int, **options: Any) -> list[ToyCall]:
    """Calls for one image each, of 4 to 12 steps."""
    made = (PlainCall(model=model, texts=(i,), steps=4 + 5 * i % 9, **options) for i in range(count))
    return plain_calls(*made)


VARIED_CALLS = st.lists(
    st.builds(
        dict,
        texts=st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
        steps=st.integers(1, 6),
        guidance=st.booleans(),
        pixels=st.sampled_from([4, 6]),
        timesteps=st.sampled_from([torch.int64, torch.float32]),
        options=st.sampled_from([(), (("strength", None),), (("scale", 0.5),)]),
        by_name=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(made=VARIED_CALLS, max_rows=st.integers(1, 8), ladder=st.sampled_from([(), (2, 4, 8)]))
def test_every_call_gets_what_it_gets_alone(
    made: list[dict[str, Any]], max_rows: int, ladder: tuple[int, ...]
) -> None:
    """Whatever the others ask for."""
    model = ToyModel()
    calls = plain_calls(*(PlainCall(model=model, **each) for each in made))
    batcher = batcher_of(model, max_rows=max_rows, ladder=ladder)

    values = run(batcher, calls)

    assert_same(values, alone(calls))
    denoised = batcher.counts["denoiser"]
    assert denoised.rows_run == denoised.rows_needed
    assert denoised.rows_needed == sum(
        len(each["texts"]) * each["steps"] * (1 + each["guidance"]) for each in made
    )


@pytest.mark.parametrize(
    "differing",
    [
        {"steps": 7},
        {"timesteps": torch.float32},
        {"by_name": True},
        {"options": [("strength", None)]},
        {"texts": (3, 4)},
        {"guidance": True},
    ],
    ids=lambda differing: next(iter(differing)),
)
def test_calls_that_differ_in_more_than_their_rows_share_batches(differing: dict[str, Any]) -> None:
    """In steps, in how a timestep is written and how arguments are passed, in rows and in guidance."""
    model = ToyModel()
    calls = plain_calls(PlainCall(model=model), PlainCall(model=model, **differing))

    values = run(batcher_of(model), calls)

    apart = model.batches("denoiser")
    assert_same(values, alone(calls))
    assert len(apart) == max(each.make.steps for each in calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "differing",
    [
        {"pixels": 6},
        {"options": [("scale", 0.5)]},
        {"options": [("strength", torch.ones(1, 1, 1))]},
        {"options": [("strength", torch.tensor(0.5))]},
    ],
    ids=["size", "plain argument", "another tensor", "tensor without rows"],
)
def test_calls_for_different_things_share_no_batch(differing: dict[str, Any]) -> None:
    """One image's size or settings must not become the other's."""
    model = ToyModel()
    calls = plain_calls(PlainCall(model=model), PlainCall(model=model, **differing))

    values = run(batcher_of(model), calls)

    assert set(model.batches("denoiser")) == {1}
    assert_same(values, alone(calls))


def test_calls_of_another_dtype_share_no_batch() -> None:
    """Joined, one of them would be cast."""
    model = ToyModel()
    ids = torch.ones(1, 5)
    calls = [call(lambda of=of: model.text_encoder(ids.to(of))) for of in (torch.int64, torch.int32)]

    values = run(batcher_of(model), calls)

    assert model.batches("text_encoder") == [1, 1]
    assert_same(values, alone(calls))


def test_the_main_module_stays_full_while_calls_end_and_begin() -> None:
    """Calls of 4 to 12 steps take turns: most of 16 rows in each batch until no more calls are to come."""
    model = ToyModel()
    queue = iter(varied(model, 96))
    batcher = batcher_of(model)
    until_the_tail: list[int] = []

    def next_call() -> ToyCall | None:
        following = next(queue, None)
        if following is None and not until_the_tail:
            until_the_tail.extend(model.batches("denoiser"))
        return following

    with torch.inference_mode():
        ended = [*batcher.run(next_call)]

    assert len(ended) == 96
    assert max(model.batches("denoiser")) == 16
    assert len(until_the_tail) > 30
    assert mean(until_the_tail) >= 12
    assert mean(model.batches("decoder")) >= 4
    assert mean(model.batches("text_encoder")) >= 4


def test_equal_texts_are_encoded_once() -> None:
    """Those that wait together and those that come later; the empty text of guidance too."""
    model = ToyModel()
    calls = plain_calls(
        *(PlainCall(model=model, texts=(i % 3, i % 2), steps=2 + i % 3, guidance=True) for i in range(40))
    )

    values = run(batcher_of(model, max_rows=4), calls)

    # 0, 1 and 2; the empty text is the 0.
    assert sum(model.batches("text_encoder")) == 3
    assert_same(values, alone(calls))


def test_the_fullest_batch_goes_first() -> None:
    """A call that nothing can be merged with waits, though it began before them."""
    model = ToyModel()
    calls = plain_calls(
        PlainCall(model=model, pixels=6), *(PlainCall(model=model, texts=(i,)) for i in range(5))
    )

    run(batcher_of(model), calls)

    assert model.batches("denoiser")[:4] == [5] * 4


def test_calls_begun_first_go_on_first() -> None:
    """They end, and make room: with room for four of six calls, two wait until the four are done."""
    model = ToyModel()

    def three_steps() -> torch.Tensor:
        sample = torch.ones(1, 4, 3)
        for timestep in (3, 2, 1):
            sample = model.denoiser(sample, timestep, torch.ones(1, 1, 3))[0]
        return model.decoder(sample)["sample"]

    run(batcher_of(model, max_rows=4), [call(three_steps) for _ in range(6)])

    ran = [(name, shape[0]) for name, shape in model.log]
    assert ran == [*[("denoiser", 4)] * 3, ("decoder", 4), *[("denoiser", 2)] * 3, ("decoder", 2)]


def test_two_sizes_in_turns_are_both_kept_full() -> None:
    """More calls are begun for it, and neither size waits for the other's end."""
    model = ToyModel()
    small, large = varied(model, 48), varied(model, 48, pixels=6)
    calls = [each for pair in zip(small, large, strict=True) for each in pair]

    values = run(batcher_of(model), calls)

    denoised = [shape for name, shape in model.log if name == "denoiser"]
    sizes = [pixels for _, pixels, _ in denoised]
    for pixels in (4, 6):
        assert mean(rows for rows, each, _ in denoised if each == pixels) >= 12
        assert pixels in sizes[: len(sizes) // 4]
        assert pixels in sizes[len(sizes) // 2 :]
    assert_same(values, alone(calls))


def test_the_same_calls_give_the_same_batches() -> None:
    """And their outcomes in the same order: what comes out follows from what goes in, to the bit."""
    ran = []
    for _ in range(2):
        model = ToyModel()
        calls = varied(model, 20) + varied(model, 20, pixels=6, guidance=True)
        with running(batcher_of(model, max_rows=8), calls) as outcomes:
            ended = [*outcomes]
        values = [outcome.value for outcome in ended]
        ran.append((model.log, [calls.index(outcome.call) for outcome in ended], values))

    (first_log, first_order, first_values), (log, order, values) = ran
    assert first_log == log
    assert first_order == order
    torch.testing.assert_close(values, first_values, rtol=0, atol=0)


def test_no_more_rows_than_allowed_are_merged() -> None:
    """Calls of 3 rows and at most 8 of them: two calls. Guidance doubles what the module sees."""
    model = ToyModel()
    calls = plain_calls(*(PlainCall(model=model, texts=(i, i + 1, i + 2), guidance=True) for i in range(6)))

    values = run(batcher_of(model, max_rows=8), calls)

    assert max(model.batches("denoiser")) == 2 * 6
    assert_same(values, alone(calls))


def test_a_call_for_more_rows_than_allowed_runs_alone() -> None:
    """It is for those who made it to have it fit."""
    model = ToyModel()
    large = PlainCall(model=model, texts=tuple(range(9)))
    calls = plain_calls(PlainCall(model=model), large, PlainCall(model=model))

    values = run(batcher_of(model, max_rows=4), calls)

    assert max(model.batches("denoiser")) == 9
    assert_same(values, alone(calls))


def test_a_call_that_asks_no_module_ends_at_once() -> None:
    """Its value is what it gives."""
    model = ToyModel()

    values = run(batcher_of(model), [call(lambda: "nothing to do"), *plain_calls(PlainCall(model=model))])

    assert values[0] == "nothing to do"


def test_when_there_is_no_next_call_it_is_asked_again_after_an_outcome() -> None:
    """So what failed comes back as new calls, when the queue had run dry before."""
    model = ToyModel()
    first, again = plain_calls(PlainCall(model=model), PlainCall(model=model, texts=(2,)))
    queue = [first]
    ended = []

    with torch.inference_mode():
        for outcome in batcher_of(model).run(lambda: queue.pop() if queue else None):
            ended.append(outcome.call)
            if outcome.call is first:
                queue.append(again)

    assert ended == [first, again]


def test_whoever_is_no_call_is_answered_as_ever() -> None:
    """Between outcomes a model may be used for something else: its answer does not wait for a batch."""
    model = ToyModel()
    sample = torch.ones(1, 4, 3)
    expected = model.decoder(sample)

    with running(batcher_of(model, max_rows=2), varied(model, 6)) as outcomes:
        between = [model.decoder(sample) for _ in outcomes]

    assert len(between) == 6
    assert_same(between, [expected] * 6)


def test_calls_begun_are_not_many_more_than_fill_the_batches() -> None:
    """What waits takes memory: for one form of call, half a batch ahead and those that are to be decoded."""
    model = ToyModel()
    begun: list[int] = []
    alive: list[int] = []

    def beginning(which: int) -> torch.Tensor:
        begun.append(which)
        return PlainCall(model=model, texts=(which,), steps=3 + which % 5)()

    calls = [call(lambda which=which: beginning(which)) for which in range(80)]
    with running(batcher_of(model, max_rows=8), calls) as outcomes:
        for ended, _ in enumerate(outcomes):
            alive.append(len(begun) - ended)

    assert len(alive) == 80
    assert max(alive) <= 2.5 * 8
