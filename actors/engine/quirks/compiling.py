"""torch.compile for the blocks that a UNet repeats."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

COMPILED = ("BasicTransformerBlock", "ResnetBlock2D", "KAttentionBlock", "ResnetBlockCondNorm2D")
"""The classes of the blocks that do nearly all of a UNet's work.

Blocks of one shape share their code, so compiling them takes a fraction of the time for the whole UNet.
TORCHINDUCTOR_CACHE_DIR keeps the code for the node's other workers and for later jobs.
"""

MAX_SHAPES = 128
"""The most shapes for one class of blocks: widths and resolutions in a UNet x batch sizes x image sizes."""


_events: list[object] = []
"""An entry for each compilation that began, and another one when it ended."""


def num_compiler_events() -> int:
    """How many compilations this process has begun and ended so far: it grows while blocks are compiled."""
    return len(_events)


@cache
def _count_compilations() -> None:
    # Deferred: it imports the compiler, which takes a second.
    from torch._dynamo.callback import callback_handler

    callback_handler.register_start_callback(_events.append)
    callback_handler.register_end_callback(_events.append)


def ladder(max_batch_rows: int) -> Sequence[int]:
    """The batch sizes, ascending, for which the UNet is compiled; with guidance an image takes two rows."""
    return sorted({2 * max_batch_rows // part for part in (8, 4, 2, 1)} - {0})


def compile_blocks(unet: Any) -> None:
    """Compile each block when it first gets a shape; blocks that are compiled already do not change."""
    _count_compilations()
    # Beyond torch 2.13's default of 8 shapes, blocks would run uncompiled with only a warning.
    torch._dynamo.config.recompile_limit = max(MAX_SHAPES, torch._dynamo.config.recompile_limit)
    for module in unet.modules():
        if type(module).__name__ in COMPILED and module._compiled_call_impl is None:
            module.compile(dynamic=False)


def is_compiler_error(error: BaseException) -> bool:
    """Whether the compiler raised the error, and not the compiled code."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
