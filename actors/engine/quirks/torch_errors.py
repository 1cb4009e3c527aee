"""Tells from an exception of torch or diffusers what happens to the row and to the worker."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from schemas.errors import DarkroomError, DeviceError, RowError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, so that a smaller batch might succeed."""
    # On a CPU torch raises a RuntimeError, with the first text on Windows and the second elsewhere.
    message = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "not enough memory" in message
        or "can't allocate memory" in message
    )


def is_fatal(error: BaseException) -> bool:
    """Whether the error is a CUDA fault, after which the process can compute nothing more.

    The worker must then be replaced.
    """
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def ends_the_run(error: BaseException) -> bool:
    """Whether the error is not that of some rows: the device is lost, or the spec cannot be carried out."""
    is_ours = isinstance(error, DarkroomError) and not isinstance(error, RowError)
    return is_ours or is_fatal(error)


@contextmanager
def device_errors() -> Iterator[None]:
    """Raise DeviceError for a fatal error of the block: the driver, which has no torch, can read that one."""
    try:
        yield
    except Exception as error:
        if is_fatal(error):
            # The other lines of a CUDA error are advice for those who debug kernels.
            raise DeviceError(str(error).partition("\n")[0]) from error
        raise


def problem_of(error: Exception) -> RowError:
    """The row's error for the part: without addresses and amounts of memory, which differ between runs."""
    if is_out_of_memory(error):
        return RowError(
            "out_of_memory", "the image does not fit in memory, even alone in its call; choose a smaller size"
        )
    message = re.sub(r"0x[0-9a-fA-F]+", "0x...", f"{type(error).__name__}: {error}".strip())
    return RowError("generation_error", message[:500])
