"""Errors of calls that run side by side: one fails alone, too large a batch is cut, a fault ends the run."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import ref

import pytest
import torch

from actors.engine.quirks.torch_errors import is_fatal, is_out_of_memory
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

BAD_TEXT = 10_000
"""So large a number that a sample of it stands out."""


def reject_bad(rows: torch.Tensor) -> None:
    """A module that cannot do with the bad text's row."""
    if rows.max() > 100:
        raise ValueError("cannot read this row")


def fits(most: int) -> Callable[[torch.Tensor], None]:
    """A module with memory for so many rows."""

    def before(rows: torch.Tensor) -> None:
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return before


def unwound(make: Callable[[], Any], ends: list[str]) -> ToyCall:
    """A call that says when it has ended, however it ends."""

    def made() -> Any:
        try:
            return make()
        finally:
            ends.append("ended")

    return call(made)


def is_patched(model: ToyModel) -> bool:
    """Whether any of its modules has another `forward` than its class."""
    return any("forward" in vars(module) for module in (model.text_encoder, model.denoiser, model.decoder))


def test_an_error_in_a_calls_own_code_is_its_own() -> None:
    """The seven others never hear of it."""
    model = ToyModel()

    def stumble() -> None:
        raise KeyError("of the third")

    calls = plain_calls(*(PlainCall(model=model, texts=(i,)) for i in range(8)))
    calls[3] = call(PlainCall(model=model, in_between=stumble))

    values = run(batcher_of(model), calls)

    assert isinstance(values.pop(3), KeyError)
    assert_same(values, alone(calls[:3] + calls[4:]))


@pytest.mark.parametrize("name", ["text_encoder", "denoiser"])
def test_a_modules_error_over_one_calls_rows_is_that_calls(name: str) -> None:
    """After an error in a batch each call is asked alone, and the others go on together."""
    model = ToyModel()
    calls = plain_calls(*(PlainCall(model=model, texts=(BAD_TEXT if i == 5 else i,)) for i in range(8)))
    expected = alone(calls[:5] + calls[6:])
    getattr(model, name).before = reject_bad
    batcher = batcher_of(model)

    values = run(batcher, calls)

    assert str(values.pop(5)) == "cannot read this row"
    assert_same(values, expected)
    assert batcher.counts["text_encoder"].rows_needed == 8
    assert model.batches("denoiser")[-3:] == [7] * 3


def test_a_call_may_live_with_a_modules_error() -> None:
    """It meets it where it called the module, as it would alone."""
    model = ToyModel()
    model.text_encoder.before = reject_bad

    def undaunted() -> torch.Tensor:
        with suppress(ValueError):
            PlainCall(model=model, texts=(BAD_TEXT,))()
        return PlainCall(model=model)()

    calls = [call(undaunted), *plain_calls(PlainCall(model=model, texts=(2,)))]

    values = run(batcher_of(model), calls)

    assert_same(values, alone(calls))


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    """Every row is made, and what did not fit is not tried again."""
    model = ToyModel()
    calls = plain_calls(*(PlainCall(model=model, texts=(i,)) for i in range(16)))
    expected = alone(calls)
    model.log.clear()
    model.denoiser.before = fits(4)

    values = run(batcher_of(model), calls)

    denoised = model.batches("denoiser")
    assert_same(values, expected)
    assert denoised[:7] == [16, 8, 4, 4, 4, 4, 4]
    assert set(denoised[7:]) == {4}


def test_a_call_that_fits_no_memory_fails_alone() -> None:
    """The others are made; it is told that memory was short."""
    model = ToyModel()
    calls = plain_calls(*(PlainCall(model=model, texts=(i,)) for i in range(5)))
    expected = alone(calls)
    large = PlainCall(model=model, texts=(1, 2, 3))
    model.denoiser.before = fits(2)

    *values, error = run(batcher_of(model), [*calls, *plain_calls(large)])

    assert isinstance(error, torch.OutOfMemoryError)
    assert_same(values, expected)


def test_memory_that_the_cpu_does_not_have_is_out_of_memory() -> None:
    """torch says so in other words there."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)

    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("place", ["module", "call"])
def test_an_error_keeps_no_tensors(place: str) -> None:
    """With them in memory the next call would not fit either."""
    model = ToyModel()
    made: list[ref[torch.Tensor]] = []
    kept: list[bool] = []

    def fail(*_: Any) -> None:
        kept.extend(each() is not None for each in made)
        activations = torch.ones(3)
        made.append(ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    calls = plain_calls(*(PlainCall(model=model, in_between=fail) for _ in range(2)))
    if place == "module":
        model.denoiser.before = fail
        calls = plain_calls(*(PlainCall(model=model) for _ in range(2)))

    errors = run(batcher_of(model), calls)

    assert [type(error) for error in errors] == [torch.OutOfMemoryError] * 2
    assert [each() for each in made if each() is not None] == []
    assert len(kept) >= 1
    assert not any(kept)


def fault() -> None:
    """What CUDA says once the process can compute nothing more."""
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert is_fatal(error)
    raise error


def interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["module", "call"])
@pytest.mark.parametrize("end", [fault, interrupt], ids=["fault", "interrupt"])
def test_a_fault_of_the_device_or_ctrl_c_ends_the_run(place: str, end: Callable[[], None]) -> None:
    """Calls under way are unwound, and the modules are what they were."""
    model = ToyModel()
    ends: list[str] = []
    calls = [unwound(PlainCall(model=model, texts=(i,)), ends) for i in range(6)]
    if place == "module":
        model.denoiser.before = lambda rows: end()
    else:
        calls[2] = unwound(PlainCall(model=model, in_between=end), ends)

    with pytest.raises((torch.AcceleratorError, KeyboardInterrupt)):
        run(batcher_of(model), calls)

    assert len(ends) == 6
    assert len(model.batches("denoiser")) == (place == "module")
    assert not is_patched(model)


def test_an_end_before_the_last_outcome_unwinds_the_calls_under_way() -> None:
    """No call is left half done, with what it holds, and the modules are what they were."""
    model = ToyModel()
    ends: list[str] = []
    calls = [unwound(PlainCall(model=model, texts=(i,), steps=2 + i), ends) for i in range(6)]

    with running(batcher_of(model, max_rows=4), calls) as outcomes:
        next(outcomes)
        ended_by_then = len(ends)
        assert is_patched(model)

    assert ended_by_then == 2
    assert len(ends) == 6
    assert not is_patched(model)


def test_an_error_on_the_way_out_leaves_no_other_call_behind() -> None:
    """Each call under way is unwound, and the fault is what is told of."""
    model = ToyModel()
    ends: list[str] = []

    def clumsy() -> None:
        try:
            PlainCall(model=model)()
        finally:
            raise OSError("while leaving")

    calls = [call(clumsy), *(unwound(PlainCall(model=model, texts=(i,)), ends) for i in range(3))]
    model.denoiser.before = lambda rows: fault()

    with pytest.raises(torch.AcceleratorError):
        run(batcher_of(model), calls)

    assert len(ends) == 3
    assert not is_patched(model)


def test_a_modules_own_forward_comes_back() -> None:
    """Some libraries put a function in its place, which calls of a batch go through too."""
    model = ToyModel()
    plain = model.decoder.forward

    def brighter(sample: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sample": plain(sample)["sample"] + 1}

    model.decoder.forward = brighter  # type: ignore[method-assign]
    calls = plain_calls(*(PlainCall(model=model, texts=(i,)) for i in range(4)))
    expected = alone(calls)

    values = run(batcher_of(model), calls)

    assert_same(values, expected)
    assert vars(model.decoder)["forward"] is brighter


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calls_leave_no_gradient_mode_behind(mode: Callable[[], Any]) -> None:
    """Each enters and leaves its own in the midst of the others."""
    model = ToyModel()
    within: list[bool] = []

    def moded(steps: int) -> torch.Tensor:
        plain = PlainCall(model=model, steps=steps, in_between=lambda: within.append(torch.is_grad_enabled()))
        with mode():
            return plain()

    calls = [call(lambda steps=steps: moded(steps)) for steps in (2, 5, 3)]
    with running(batcher_of(model), calls) as outcomes:
        between = [(torch.is_grad_enabled(), torch.is_inference_mode_enabled()) for _ in outcomes]

    assert within == [False] * 10
    assert between == [(False, True)] * 3
    assert torch.is_grad_enabled()
