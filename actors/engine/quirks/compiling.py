"""torch.compile for what a UNet repeats."""

from collections.abc import Sequence
from typing import Any

import torch

COMPILED = ("BasicTransformerBlock", "ResnetBlock2D", "KAttentionBlock", "ResnetBlockCondNorm2D")
"""The classes of which UNets are made, nearly all of their work. Blocks of one shape share their code, which
takes a fraction of the whole UNet's compilation. TORCHINDUCTOR_CACHE_DIR keeps it for the node's other
workers and later jobs."""

MAX_SHAPES = 128
"""Of one class of blocks: widths and resolutions in a UNet, by sizes of batches, by sizes of pictures."""


def ladder(max_batch_rows: int) -> Sequence[int]:
    """Sizes of UNet batches, of which each is compiled: with guidance a picture takes two rows."""
    return sorted({2 * max_batch_rows // part for part in (8, 4, 2, 1)} - {0})


def compile_blocks(unet: Any) -> None:
    """Have its blocks compiled when they first see a shape; those that are already stay as they are."""
    # Shapes beyond torch 2.13's default of 8 would run uncompiled, with no more than a warning.
    torch._dynamo.config.recompile_limit = max(MAX_SHAPES, torch._dynamo.config.recompile_limit)
    for module in unet.modules():
        if type(module).__name__ in COMPILED and module._compiled_call_impl is None:
            module.compile(dynamic=False)


def is_compiler_error(error: BaseException) -> bool:
    """Whether compiling failed, and not what was compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
