"""The operations on tensors that a block of code runs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """While it is entered, notes the operations whose tensors are on one of the devices, views included."""

    def __init__(self, *device_types: str) -> None:
        """Without device types, all operations are noted."""
        super().__init__()
        self.names: list[str] = []
        self._device_types = device_types

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        if not self._device_types or any(tensor.device.type in self._device_types for tensor in tensors):
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))
