"""The pretended GPU itself: it refuses what a GPU refuses, and notes what a GPU would wait for."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.pretended_gpu.device_events import Kind
from tests.support.pretended_gpu.device_tensor import DEVICE
from tests.support.pretended_gpu.pretended_cuda import PretendedGPU, pretended_gpu

WAIT, COPY, KERNEL = Kind.WAIT, Kind.COPY, Kind.KERNEL


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    """A GPU, for code in inference mode, as the engine runs."""
    with pretended_gpu() as device, torch.inference_mode():
        yield device


def on_device() -> torch.Tensor:
    """The numbers from 0 to 5 in 3 rows, on the device."""
    return torch.arange(6.0, device=DEVICE).reshape(3, 2)


def one() -> torch.Tensor:
    """The number 1 on the device."""
    return torch.ones((), dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize(
    ("use", "kinds"),
    [
        # Values that the host asks for.
        (lambda x: x[0, 0].item(), [WAIT]),
        (lambda x: bool(x[0, 0]), [WAIT]),
        (lambda x: float(x[0, 0]), [WAIT]),
        (lambda x: f"{x[0, 0]}", [WAIT]),
        (lambda x: x.tolist(), [WAIT]),
        (lambda x: x.cpu(), [WAIT]),
        (lambda x: torch.tensor([x[0, 0]]), [WAIT]),
        (lambda x: torch.equal(x, x), [WAIT]),
        (lambda x: x[one()], [KERNEL, WAIT]),
        (lambda x: torch.ones(3)[one()], [KERNEL, WAIT]),
        (lambda x: x[x > 1], [KERNEL, WAIT, KERNEL]),
        (lambda x: x.nonzero(), [WAIT, KERNEL]),
        (lambda x: torch.linalg.solve(x[:2], x[:2]), [KERNEL, WAIT]),
        # What the host sends from memory that is not pinned.
        (lambda x: x[[0, 2]], [COPY, WAIT, KERNEL]),
        (lambda x: x[torch.tensor([0, 2])], [COPY, WAIT, KERNEL]),
        (lambda x: torch.tensor([1.0], device=DEVICE), [COPY, WAIT]),
        (lambda x: torch.ones(2).to(x), [COPY, WAIT]),
        (lambda x: torch.ones(2).to(DEVICE, non_blocking=True), [COPY, WAIT]),
        # What the device does while the host goes on.
        (lambda x: torch.ones(2).pin_memory().to(DEVICE, non_blocking=True), [COPY]),
        (lambda x: torch.empty(3, 2, pin_memory=True).copy_(x, non_blocking=True), []),
        (lambda x: x.to("cpu", non_blocking=True), []),
        (lambda x: x + 1, [KERNEL]),
        (lambda x: x + torch.tensor(1.0), [KERNEL]),
        (lambda x: x.mul_(2), [KERNEL]),
        (lambda x: x.to(torch.float16), [KERNEL]),
        (lambda x: torch.zeros(2, device="cuda"), [KERNEL]),
        (lambda x: x.T.contiguous(), [KERNEL]),
        # What needs nothing of the device.
        (lambda x: x.to(DEVICE), []),
        (lambda x: x[:, 0].view(3, 1).expand(3, 4), []),
        (lambda x: torch.empty_like(x), []),
        (lambda x: torch.ones(2) + 1, []),
    ],
)
def test_what_the_device_is_asked_for_is_noted(
    gpu: PretendedGPU, use: Callable[[torch.Tensor], Any], kinds: list[Kind]
) -> None:
    """In the order in which it happens."""
    x = on_device()
    gpu.log.clear()

    use(x)

    assert [event.kind for event in gpu.log.events] == kinds


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda x: x + torch.ones(2), RuntimeError),
        (lambda x: torch.cat([x, torch.ones(1, 2)]), RuntimeError),
        (lambda x: torch.ones(2) * x[0, 0], RuntimeError),
        (lambda x: torch.ones(()).add_(x[0, 0]), RuntimeError),
        (lambda x: torch.stack([torch.tensor(1.0), x[0, 0]]), RuntimeError),
        (lambda x: torch.ones(3)[one().reshape(1)], RuntimeError),
        (lambda x: torch.nn.functional.linear(x, torch.ones(4, 2)), RuntimeError),
        (lambda x: torch.randn(2, generator=torch.Generator(), device=DEVICE), RuntimeError),
        (lambda x: torch.ones(1).expand(2).pin_memory(), RuntimeError),
        (lambda x: x.pin_memory(), RuntimeError),
        (lambda x: x.numpy(), TypeError),
        (lambda x: np.asarray(x), TypeError),
    ],
)
def test_a_mixture_is_refused(
    gpu: PretendedGPU, use: Callable[[torch.Tensor], Any], error: type[Exception]
) -> None:
    """Torch says so at once, and the row would fail."""
    x = on_device()

    with pytest.raises(error):
        use(x)


def test_values_are_those_of_the_cpu(gpu: PretendedGPU) -> None:
    """So the engine's own decisions are the ones that it would make on a device, but for rounding."""
    x = on_device()

    x[1] = torch.tensor(9.0)
    doubled = torch.where(x > 1, 2 * x, x)

    assert doubled.device == DEVICE
    assert doubled.tolist() == [[0, 1], [18, 18], [8, 10]]
    assert torch.einsum("ij,kj->ik", x, x).shape == (3, 3)


def test_a_module_can_be_moved_to_the_device(gpu: PretendedGPU) -> None:
    """Parameters and buffers alike, as a pipeline's `to` does."""
    with torch.inference_mode(False):
        module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).to(DEVICE).eval()

    assert {tensor.device for tensor in (*module.parameters(), *module.buffers())} == {DEVICE}
    assert module(on_device()).device == DEVICE
    with pytest.raises(RuntimeError, match="same device"):
        module(torch.ones(3, 2))


def test_an_event_names_the_line_that_caused_it(gpu: PretendedGPU) -> None:
    """The two innermost lines outside of torch."""
    gpu.log.clear()
    on_device().cpu()

    assert [event.place.partition(":")[0] for event in gpu.log.events if event.kind is WAIT] == [
        "tests/device/test_pretended_gpu.py"
    ]


def test_it_is_gone_afterwards() -> None:
    """Other tests run in the same process."""
    before = torch.cuda.is_available()

    with pretended_gpu():
        assert torch.cuda.is_available()
        assert torch.ones(1).cuda().is_cuda

    assert torch.cuda.is_available() == before
    assert torch.tensor([1.0]).device.type == "cpu"
