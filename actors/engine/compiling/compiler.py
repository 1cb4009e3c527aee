"""The merge points of a model whose blocks run as compiled code."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from actors.engine.batching import tensor_trees
from actors.engine.batching.batch_policy import Stage
from actors.engine.batching.merged_modules import MergePoint
from actors.engine.compiling.shape_counts import SHAPE_COUNTS, ShapeCounts
from schemas.errors import SpecError
from schemas.wording.amounts import counted

UNET_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "KAttentionBlock", "ResnetBlockCondNorm2D")
"""The classes of the blocks that do nearly all of a UNet's work.

Blocks of one shape share their code, so compiling them takes a fraction of the time for the whole module.
"""
DECODER_BLOCKS = ("ResnetBlock2D", "Attention")
"""The same of a VAE's decoder."""

Backend = str | Callable[..., Any]
"""What torch.compile hands its graphs to."""

_events: list[object] = []
"""An entry for each compilation that began, and another one when it ended."""


def num_compiler_events() -> int:
    """How many compilations this process has begun and ended so far: it grows while blocks are compiled."""
    return len(_events)


class Compiler:
    """Compiles blocks when they first get a shape; blocks that are compiled already do not change."""

    def __init__(
        self,
        decoded_images: Sequence[int],
        backend: Backend = "inductor",
        counts: ShapeCounts = SHAPE_COUNTS,
    ) -> None:
        """`decoded_images`: the numbers of images, descending, into which decoders' batches are cut."""
        self._decoded_images = decoded_images
        self._backend = backend
        self._counts = counts

    def compiled(self, points: Iterable[MergePoint]) -> Iterator[MergePoint]:
        """The merge points; those of the UNet and the decoder run compiled blocks."""
        _count_compilations()
        for point in points:
            if point.stage is Stage.DENOISE:
                yield replace(point, forward=self._forward(point.module, UNET_BLOCKS))
            elif point.stage is Stage.DECODE:
                forward = self._forward(point.module, DECODER_BLOCKS)
                yield replace(point, forward=partial(_in_pieces, forward, self._decoded_images))
            else:
                yield point

    def _forward(self, module: torch.nn.Module, classes: Sequence[str]) -> Callable[..., Any]:
        """The module's `forward` with compiled blocks of these classes."""
        blocks = [each for each in module.modules() if type(each).__name__ in classes]
        for block in blocks:
            if block._compiled_call_impl is None:
                # With `fullgraph`, a limit that is hit is an error; blocks would otherwise run uncompiled.
                block.compile(dynamic=False, fullgraph=True, backend=self._backend)
        own_forward = module.forward

        def forward(**arguments: Any) -> Any:
            # Other strides would be another shape to the compiler.
            arguments = tensor_trees.contiguous(arguments)
            shape = tensor_trees.form(arguments), tuple(tensor_trees.leading_sizes(arguments))
            self._counts.add(module, blocks, shape)
            with self._compiler_errors():
                return own_forward(**arguments)

        return forward

    @contextmanager
    def _compiler_errors(self) -> Iterator[None]:
        """Raise SpecError for an error of the compiler."""
        try:
            yield
        except Exception as error:
            if _is_limit(error):
                raise SpecError(
                    "batching.compile: a class of blocks needs more than "
                    f"{counted(self._counts.limit, 'graph')} (torch._dynamo.config.recompile_limit), though "
                    "that is one for each of its blocks and each shape of their input. Please report this, "
                    "and use batching.compile: false"
                ) from error
            if is_compiler_error(error):
                raise SpecError(f"batching.compile: torch.compile does not work here: {error}") from error
            raise


def _in_pieces(forward: Callable[..., Any], sizes: Sequence[int], **arguments: Any) -> Any:
    """The results of the rows, of which `forward` gets as many at once as one of the sizes says."""
    rows = len(next(tensor_trees.tensors(arguments)))
    results, start = [], 0
    while start < rows:
        size = next(size for size in sizes if size <= rows - start)
        results.append(forward(**tensor_trees.select(arguments, slice(start, start + size))))
        start += size
    return tensor_trees.join(results)


def is_compiler_error(error: BaseException) -> bool:
    """Whether the compiler raised the error, and not the compiled code, which fails while it is traced."""
    kind = type(error)
    return kind.__module__.startswith(("torch._dynamo", "torch._inductor")) and (
        kind.__name__ != "TorchRuntimeError"
    )


def _is_limit(error: BaseException) -> bool:
    # By name, because importing torch._dynamo takes a second.
    return type(error).__name__ == "FailOnRecompileLimitHit"


@cache
def _count_compilations() -> None:
    # Deferred: it imports the compiler, which takes a second.
    from torch._dynamo.callback import callback_handler

    callback_handler.register_start_callback(_events.append)
    callback_handler.register_end_callback(_events.append)
