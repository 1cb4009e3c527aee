"""From torch's errors it follows whether a batch is halved, a worker is replaced, or a row has failed."""

import pytest
import torch

from actors.engine.quirks.torch_errors import device_errors, is_fatal, is_out_of_memory, problem_of
from schemas.errors import DeviceError

FAULT = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("error", "out_of_memory", "fatal"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True, False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True, False),
        (torch.AcceleratorError("HIP error: not enough memory"), True, False),
        (FAULT, False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("no"), False, False),
    ],
)
def test_only_a_fault_of_the_device_is_fatal(error: Exception, out_of_memory: bool, fatal: bool) -> None:
    """Memory that ran out, in whatever words, is a reason to try a smaller batch."""
    assert (is_out_of_memory(error), is_fatal(error)) == (out_of_memory, fatal)


def test_a_fault_of_the_device_becomes_an_error_that_the_driver_can_read() -> None:
    """Without torch, and in one line; every other error stays what it is."""
    with pytest.raises(DeviceError) as raised, device_errors():
        raise torch.AcceleratorError("CUDA error: an illegal memory access\nFor debugging consider passing")
    with pytest.raises(torch.OutOfMemoryError), device_errors():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert str(raised.value) == "CUDA error: an illegal memory access"


def test_a_rows_error_is_the_same_in_every_run() -> None:
    """Addresses differ between processes; what diffusers prints at length is cut."""
    error = ValueError(f"<Tensor at 0x7f12AB> has no rows {'x' * 1000}")

    problem = problem_of(error)

    assert problem.code == "generation_error"
    assert problem.message.startswith("ValueError: <Tensor at 0x...> has no rows xxx")
    assert len(problem.message) == 500


def test_a_row_that_fits_in_no_memory_is_told_no_amounts() -> None:
    """They depend on what else is in memory."""
    problem = problem_of(torch.OutOfMemoryError("Tried to allocate 2.00 GiB"))

    assert problem.code == "out_of_memory"
    assert "2.00" not in problem.message
