"""What an exception from torch or diffusers means for a row."""

import re

import torch

from schemas.errors import RowError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at a time might do."""
    # On a CPU torch raises a RuntimeError, which says the one on Windows and the other elsewhere.
    said = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "not enough memory" in said
        or "can't allocate memory" in said
    )


def is_fatal(error: BaseException) -> bool:
    """After a CUDA fault the process can compute nothing more: let the worker be replaced."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def problem_of(error: Exception) -> RowError:
    """What goes into the part: without addresses and amounts of free memory, which differ between runs."""
    if is_out_of_memory(error):
        return RowError(
            "out_of_memory", "this picture does not fit in memory even alone; ask for a smaller one"
        )
    said = re.sub(r"0x[0-9a-fA-F]+", "0x...", f"{type(error).__name__}: {error}".strip())
    return RowError("generation_error", said[:500])
