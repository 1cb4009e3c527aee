"""What becomes of a call's outcome: results in their order, and a broken device that ends the run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from actors.engine.batching.batcher import Outcome
from actors.engine.calls.decode_ahead import DecodeAhead
from actors.engine.calls.outputs import PendingOutputs, pending_outputs
from actors.engine.cohort_runner import MAX_ARRIVING, CohortRunner, one_by_one
from schemas.spec.job_spec import BatchingSpec
from tests.support.in_process import DEVICE


@dataclass
class Copy:
    """The end of a copy from a device that is slow: only waiting for it makes it happen."""

    waited_for: bool = False

    def query(self) -> bool:
        """Whether it has happened."""
        return self.waited_for

    def synchronize(self) -> None:
        """Wait for it."""
        self.waited_for = True


def result_of(number: int, copied: Copy) -> tuple[Any, Any]:
    """A call for one image, and what it returned."""
    sample = SimpleNamespace(nsfw=None, number=number)
    pixels = torch.arange(12, dtype=torch.uint8).reshape(1, 2, 2, 3) + number
    outputs: Any = PendingOutputs(pixels=pixels, finite=torch.ones(1, dtype=torch.bool), copied=copied)  # type: ignore[arg-type]
    return SimpleNamespace(decoded=[(sample, {})], rows=1), SimpleNamespace(outputs=outputs, judged=None)


def runner() -> CohortRunner:
    """A runner of a model without modules."""
    model: Any = SimpleNamespace(components={}, device=DEVICE, safety_checker=None)
    ahead: Any = DecodeAhead(iter(()), decoders=None)  # type: ignore[arg-type]
    return CohortRunner(model, ahead, BatchingSpec(exact=True), exact=True)


def numbers(results: Sequence[Any]) -> list[int]:
    return [result.sample.number for result in results]


def test_values_become_the_nearest_of_their_levels() -> None:
    """Each row's own, for images of two different sides."""
    levels = torch.tensor([0.0, 0.49, 0.51, 100.4, 100.6, 254.6])
    rgb = (levels.repeat(2, 3, 2, 1) + torch.tensor([0, 0.04])[:, None, None, None]) / 255
    depth = (levels.repeat(2, 2, 1) + 1000 * torch.arange(2)[:, None, None]) / 65535

    outputs = pending_outputs(SimpleNamespace(rgb=rgb, depth=depth), gives_latents=False).get()

    for row, output in enumerate(outputs):
        assert output.pixels is not None
        assert output.pixels.shape == (2, 6, 3)
        assert output.pixels[1, :, 2].tolist() == [0, [0, 1][row], 1, 100, 101, 255]
        assert output.depth is not None
        assert output.depth[1].tolist() == [1000 * row + level for level in (0, 0, 1, 100, 101, 255)]


def test_results_are_waited_for_only_when_many_are_on_their_way() -> None:
    """The device goes on with other work meanwhile; each result has its own pixels, the oldest first."""
    running = runner()
    copies = [Copy() for _ in range(MAX_ARRIVING + 2)]
    waited_for: list[bool] = []

    def outcomes() -> Iterator[Outcome[Any]]:
        for number, copied in enumerate(copies):
            call, result = result_of(number, copied)
            yield Outcome(call=call, value=result)
        waited_for.extend(copied.waited_for for copied in copies)

    with patch.object(running, "_outcomes", outcomes):
        results = [*running.run()]

    assert waited_for == [True, True] + [False] * MAX_ARRIVING
    assert numbers(results) == [*range(MAX_ARRIVING + 2)]
    assert [int(np.min(each.pixels)) for each in results if each.pixels is not None] == numbers(results)


def test_a_result_that_has_arrived_is_not_kept_back() -> None:
    """However few are on their way."""
    running = runner()
    call, result = result_of(5, Copy(waited_for=True))

    running._take(Outcome(call=call, value=result))

    assert numbers([*running._finished(MAX_ARRIVING)]) == [5]


def test_a_broken_device_ends_calls_that_run_one_by_one() -> None:
    """The worker must be replaced; any other error is the outcome of its call."""
    errors: list[Exception] = [ValueError("this row"), torch.AcceleratorError("CUDA error: illegal access")]

    def call(error: Exception) -> Any:
        def fail() -> None:
            raise error

        return fail

    calls = iter([call(error) for error in errors])
    outcomes = one_by_one(lambda: next(calls, None))

    assert next(outcomes).error is errors[0]
    with pytest.raises(torch.AcceleratorError):
        next(outcomes)
