"""What a module is asked when calls share it, and what each of them gets back."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from actors.engine.batching.batch_policy import Stage
from actors.engine.batching.batcher import Batcher
from actors.engine.batching.merged_modules import CallCount, MergePoint
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
)


class Recorder(torch.nn.Module):
    """Keeps what it is given, and answers with what it is told to."""

    def __init__(self, answer: Callable[..., Any] = lambda sample, **_: 2 * sample) -> None:
        super().__init__()
        self.answer = answer
        self.seen: list[dict[str, Any]] = []

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None, **options: Any
    ) -> Any:
        self.seen.append({"sample": sample, "timestep": timestep, **options})
        return self.answer(sample, timestep=timestep, **options)


def merged(
    module: torch.nn.Module, asked: Sequence[Callable[[], Any]], *, ladder: Sequence[int] = (), **entry: Any
) -> tuple[list[Any], CallCount]:
    """What calls get that ask one module once each, and the module's count."""
    point = MergePoint(
        name="module",
        **{"module": module, "stage": Stage.DENOISE, "numbers": frozenset({"timestep"}), **entry},
    )
    batcher: Batcher[ToyCall] = Batcher([point], 16, ladder)
    values = run(batcher, [call(make, rows=1) for make in asked])
    return values, batcher.counts["module"]


def rows_of(*numbers: float) -> torch.Tensor:
    """A row of two for each number."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, 2)


def test_each_row_gets_its_calls_timestep() -> None:
    """As a float, whether the scheduler counts in whole numbers, in tensors or in neither."""
    module = Recorder()

    merged(
        module,
        [
            lambda: module(rows_of(1, 2), torch.tensor(999)),
            lambda: module(rows_of(3), torch.tensor(0.5)),
            lambda: module(rows_of(4), timestep=7),
            lambda: module(rows_of(5, 6), torch.tensor([3, 2])),
        ],
    )

    (seen,) = module.seen
    assert seen["timestep"].tolist() == [999, 999, 0.5, 7, 3, 2]
    assert seen["timestep"].dtype == torch.float32


def test_a_timestep_is_moved_to_where_its_rows_are() -> None:
    """Some schedulers keep it on the CPU; modules fetch a single number, and not a number for each row."""
    module = Recorder()

    merged(module, [lambda: module(torch.ones(2, 2, device="meta"), torch.tensor(0.5))] * 2)

    assert module.seen[0]["timestep"].device.type == "meta"


def test_modules_that_are_called_alike_are_not_mixed_up() -> None:
    """As XL's two text encoders are: each answers its own calls, though both wait at the same time."""
    double, triple = Recorder(), Recorder(lambda sample, **_: 3 * sample)
    points = [
        MergePoint(name=name, module=module, stage=Stage.ENCODE)
        for name, module in (("double", double), ("triple", triple))
    ]
    asked = [lambda: double(rows_of(1)), lambda: triple(rows_of(1)), lambda: double(rows_of(2))]

    values = run(Batcher(points, 16), [call(make) for make in asked])

    assert_same(values, [rows_of(2), rows_of(3), rows_of(4)])
    assert [len(double.seen), len(triple.seen)] == [1, 1]


def test_none_is_as_good_as_left_out() -> None:
    """Pipelines differ in that, for the same module."""
    module = Recorder()

    merged(module, [lambda: module(rows_of(1), 5), lambda: module(rows_of(2), 5, mask=None)])

    assert len(module.seen) == 1


def test_a_module_is_given_the_none_that_it_insists_on() -> None:
    """Left out, it would be missing, or be something else by default."""

    class Insistent(torch.nn.Module):
        def forward(
            self, sample: torch.Tensor, states: torch.Tensor | None, scale: float | None = 2.0
        ) -> Any:
            return sample * (scale or 1) + (0 if states is None else states)

    module = Insistent()
    asked = [lambda: module(rows_of(1), None, None), lambda: module(rows_of(2), states=None, scale=None)]

    values, count = merged(module, asked)

    assert_same(values, [rows_of(1), rows_of(2)])
    assert count.batches == 1


def test_in_a_ladder_the_main_module_sees_the_ladders_sizes_only() -> None:
    """Short batches are filled up, with rows of which nobody hears and which nobody counts."""
    model = ToyModel()
    calls = plain_calls(*(PlainCall(model=model, texts=(i,), steps=1 + i % 5) for i in range(11)))
    batcher = batcher_of(model, max_rows=16, ladder=(4, 8))

    values = run(batcher, calls)

    count = batcher.counts["denoiser"]
    assert_same(values, alone(calls)[: len(values)])
    assert set(model.batches("denoiser")[: count.batches]) == {4, 8, 11}
    assert count.rows_run == count.rows_needed == sum(1 + i % 5 for i in range(11))
    assert count.rows_padded == sum(model.batches("denoiser")[: count.batches]) - count.rows_run


def test_a_batch_of_a_ladders_size_is_not_padded() -> None:
    """Nor is the smallest."""
    module = Recorder()

    _, count = merged(module, [lambda: module(rows_of(1, 2))] * 2, ladder=(2, 4))

    assert [len(seen["sample"]) for seen in module.seen] == [4]
    assert count.rows_padded == 0


@pytest.mark.parametrize(
    ("rows_of_calls", "padded_to"),
    [((1, 1, 1), 4), ((2, 2, 2), 8), ((3, 3, 3), 12), ((3, 1, 1), 8), ((2,) * 5, 16), ((1,) * 9, 9)],
)
def test_a_ladder_counts_images_of_one_two_or_three_rows(
    rows_of_calls: tuple[int, ...], padded_to: int
) -> None:
    """One without guidance, two with it, three for Safe; in a mixed batch the mean, rounded up."""
    module = Recorder()
    asked = [lambda rows=rows: module(rows_of(*range(rows))) for rows in rows_of_calls]

    values, count = merged(module, asked, ladder=(2, 4, 8))

    assert [len(seen["sample"]) for seen in module.seen] == [padded_to]
    assert count.rows_padded == padded_to - sum(rows_of_calls)
    assert_same(values, [2 * rows_of(*range(rows)) for rows in rows_of_calls])


def test_in_a_ladder_other_modules_are_not_padded() -> None:
    """They run too seldom for it."""
    model = ToyModel()
    batcher = batcher_of(model, ladder=(4, 8))

    run(batcher, plain_calls(*(PlainCall(model=model, texts=(i,)) for i in range(3))))

    assert model.batches("text_encoder") == [3]
    assert model.batches("decoder") == [3]
    assert batcher.counts["text_encoder"].rows_padded == 0


def test_rows_that_cannot_be_told_apart_are_not_padded() -> None:
    """A call with a tensor that has other rows, or none, runs as it is."""
    module = Recorder(lambda sample, mask, **_: sample * mask)
    masks = torch.tensor([[2.0, 3.0]]), torch.tensor(4.0)
    asked = [lambda mask=mask: module(rows_of(1, 2, 3), mask=mask) for mask in masks]

    values, _ = merged(module, asked, ladder=(2, 4, 8))

    assert_same(values, [rows_of(1, 2, 3) * mask for mask in masks])
    assert [len(seen["sample"]) for seen in module.seen] == [3, 3]


@pytest.mark.parametrize(
    "answer",
    [
        lambda sample, **_: (2 * sample, sample.sum(0, keepdim=True)),
        lambda sample, **_: {"sample": 2 * sample, "mean": sample.mean()},
    ],
    ids=["other rows", "no rows"],
)
def test_results_that_cannot_be_shared_out_are_made_for_each_call(answer: Callable[..., Any]) -> None:
    """Nobody gets a part of what is not divided into rows."""
    module = Recorder(answer)
    asked = [lambda: module(rows_of(1)), lambda: module(rows_of(2, 3))]

    values, _ = merged(module, asked)

    assert_same(values, [answer(rows_of(1)), answer(rows_of(2, 3))])


def test_what_a_call_does_to_its_rows_is_its_own_affair() -> None:
    """Pipelines change results in place."""
    module = Recorder()
    asked = [lambda: module(rows_of(1)).zero_(), lambda: module(rows_of(2))]

    values, count = merged(module, asked)

    assert_same(values, [rows_of(0), rows_of(4)])
    assert count.batches == 1


@pytest.mark.parametrize("numbers", [(1,), (1, 2)])
def test_what_a_call_does_to_remembered_rows_is_its_own_affair(numbers: Sequence[float]) -> None:
    """The next one gets what the module gave."""
    module = Recorder()
    asked = [lambda: module(rows_of(*numbers)).zero_()] * 2 + [lambda: module(rows_of(*numbers))]

    together, _ = merged(module, asked, caches_rows=True)
    in_turn, _ = merged(module, [lambda: [each() for each in asked]], caches_rows=True)

    assert_same([together[2], in_turn[0][2]], [2 * rows_of(*numbers)] * 2)


def test_rows_are_remembered_for_the_arguments_they_came_with() -> None:
    """The same numbers mean something else under another name or with another option."""
    module = Recorder(lambda sample, bias=0, scale=1, deep=False, **_: (sample + bias) * scale * (1 + deep))
    ones, twos = rows_of(1, 1), rows_of(2, 2)
    asked = [
        lambda: module(ones, bias=twos),
        lambda: module(ones, scale=twos),
        lambda: module(ones, bias=twos, deep=True),
    ]

    values, _ = merged(module, [lambda: [each() for each in asked]], caches_rows=True)

    assert_same(values[0], [3 * ones, 2 * ones, 6 * ones])


@pytest.mark.parametrize("name", ["more", "then"])
def test_rows_of_nested_tensors_are_told_apart(name: str) -> None:
    """However alike they print, as their middle is left out there; by the first tensor as by the last."""
    module = Recorder(lambda sample, **options: sample + options[name]["states"].sum(1, keepdim=True))
    other = torch.zeros(1, 5000)
    other[0, 2500] = 1
    states = [torch.zeros(1, 5000), other]
    asked = [lambda each=each: module(rows_of(0), **{name: {"states": each}}) for each in states]

    values, _ = merged(module, asked, caches_rows=True)

    assert_same(values, [rows_of(0), rows_of(1)])


def test_rows_in_bfloat16_are_remembered_too() -> None:
    """numpy has no such numbers."""
    module = Recorder()
    sample = rows_of(1).bfloat16()

    values, count = merged(module, [lambda: module(sample)] * 2, caches_rows=True)

    assert_same(values, [2 * sample] * 2)
    assert count.rows_run == 1


def test_arguments_that_do_not_agree_on_rows_are_not_remembered() -> None:
    """They are answered all the same."""
    module = Recorder(lambda sample, places, **_: sample + places)
    asked = [lambda: module(rows_of(1, 2), places=torch.ones(1, 2))] * 2

    values, count = merged(module, asked, caches_rows=True)

    assert_same(values, [rows_of(2, 3)] * 2)
    assert count.batches == 2


def test_rows_known_already_count_as_needed() -> None:
    """What was asked for does not depend on when; what was run does."""
    module = Recorder()

    _, together = merged(module, [lambda: module(rows_of(1))] * 3, caches_rows=True)
    _, in_turn = merged(module, [lambda: [module(rows_of(1)) for _ in range(3)]], caches_rows=True)

    assert (together.rows_needed, together.rows_run) == (3, 1)
    assert (in_turn.rows_needed, in_turn.rows_run) == (3, 1)


def test_a_call_under_autocast_is_answered_under_it() -> None:
    """And nobody else is, nor is it left on."""

    def precision(sample: torch.Tensor, **_: Any) -> torch.Tensor:
        return sample @ torch.ones(2, 2)

    module = Recorder(precision)

    def cast(dtype: torch.dtype) -> list[torch.dtype]:
        with torch.autocast("cpu", dtype=dtype):
            within = [module(rows_of(1)).dtype for _ in range(2)]
            own = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        return [*within, own, module(rows_of(1)).dtype]

    halves = (torch.bfloat16, torch.float16, torch.bfloat16)
    asked = [lambda dtype=dtype: cast(dtype) for dtype in halves]
    values, _ = merged(module, [*asked, lambda: module(rows_of(1)).dtype])

    assert values == [[dtype] * 3 + [torch.float32] for dtype in halves] + [torch.float32]
    assert not torch.is_autocast_enabled("cpu")


def test_what_is_learnt_about_memory_is_not_unlearnt() -> None:
    """A later failure of a larger batch does not raise what is tried."""
    seen = []

    def before(sample: torch.Tensor, **_: Any) -> torch.Tensor:
        seen.append(len(sample))
        if len(sample) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample

    module = Recorder(before)
    first, large = (lambda: [module(rows_of(i)) for i in range(3)]), (lambda: module(rows_of(*range(4))))

    merged(module, [first, first, large, large])

    # Ten rows, two, one and one; the large ones, of which no two are tried together again.
    assert seen == [10, 2, 1, 1, 4, 4, 1, 1, 1, 1]


def test_another_function_may_stand_in_for_a_modules_forward() -> None:
    """For calls; whoever is no call gets the module's own."""
    module = Recorder()

    values, _ = merged(module, [lambda: module(rows_of(1))], forward=lambda sample: 3 * sample)

    assert_same([*values, module(rows_of(1))], [rows_of(3), rows_of(2)])


def test_rows_without_an_addition_are_as_rows_with_zeros() -> None:
    """They share the batch of rows that have one; alone they get none."""
    module = Recorder(lambda sample, residual=(0.0,), **_: sample + sum(residual))
    one = [torch.ones(1, 2), torch.ones(1, 1)]
    additions = frozenset({"residual"})

    values, count = merged(
        module,
        [lambda: module(rows_of(1)), lambda: module(rows_of(5), residual=one), lambda: module(rows_of(7))],
        additions=additions,
    )
    alone_, _ = merged(module, [lambda: module(rows_of(1))], additions=additions)

    assert (count.batches, count.rows_run) == (1, 3)
    assert torch.equal(torch.cat(values), rows_of(1, 7, 7))
    assert torch.equal(alone_[0], rows_of(1))
    assert "residual" not in module.seen[-1]


def test_a_module_is_not_run_for_a_known_answer() -> None:
    """The call goes on at once, and is not counted."""
    module = Recorder()

    values, count = merged(
        module,
        [lambda: module(rows_of(1), scale=0), lambda: module(rows_of(2), scale=1)],
        known_answer=lambda arguments: rows_of(9) if not arguments["scale"] else None,
    )

    assert [*map(torch.Tensor.tolist, values)] == [rows_of(9).tolist(), rows_of(4).tolist()]
    assert (count.batches, count.rows_run, count.rows_needed) == (1, 1, 1)
