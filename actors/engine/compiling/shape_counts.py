"""How many graphs the compiler may make: as many as there are blocks for each shape that their module gets.

torch counts graphs by the code that they are made from, for all models of a process, and so do these counts.
"""

from collections import Counter
from collections.abc import Hashable, MutableMapping, Sequence
from weakref import WeakKeyDictionary

import torch


class ShapeCounts:
    """Counts the shapes that modules get, and raises torch's limits with them."""

    def __init__(self) -> None:
        self._shapes: MutableMapping[torch.nn.Module, set[Hashable]] = WeakKeyDictionary()
        self._graphs: Counter[str] = Counter()
        """By class of blocks, the most graphs that all shapes so far can need."""

    @property
    def limit(self) -> int:
        """The most graphs that the blocks of any one class can need so far."""
        return max(self._graphs.values(), default=0)

    def add(self, module: torch.nn.Module, blocks: Sequence[torch.nn.Module], shape: Hashable) -> None:
        """Allow each of the module's blocks a graph for this shape of the module's arguments."""
        shapes = self._shapes.setdefault(module, set())
        if shape not in shapes:
            shapes.add(shape)
            self._graphs.update(type(block).__name__ for block in blocks)
        config = torch._dynamo.config
        # Since torch 2.12 each thread and each greenlet has a configuration of its own.
        if config.recompile_limit != self.limit or config.accumulated_recompile_limit != self.limit:
            config.recompile_limit = config.accumulated_recompile_limit = self.limit


SHAPE_COUNTS = ShapeCounts()
"""The counts of this process."""
