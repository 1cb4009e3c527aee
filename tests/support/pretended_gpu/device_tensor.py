"""A tensor that says that it lies on `cuda:0`, and the mode that sees all other operations of a thread."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.pretended_gpu.device_events import DeviceLog, Kind

DEVICE = torch.device("cuda", 0)

Rules = Callable[[Any, Collection[type], tuple[Any, ...], Mapping[str, Any]], Any]


class DeviceTensor(torch.Tensor):
    """A tensor of the pretended GPU. `host_values` is the plain tensor with its values, on the CPU."""

    host_values: torch.Tensor
    device_rules: Rules | None = None
    """What happens to operations on such tensors; None while there is no pretended GPU."""
    device_log: DeviceLog
    """Where its waits are noted."""

    # Attributes are not named as methods of torch.Tensor, such as `log`.
    # Torch's own functions see it as any tensor: only the operations below them are handed to the rules.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type, values: torch.Tensor) -> "DeviceTensor":
        # Never an inference tensor: torch refuses views that mix both kinds, and weights are plain ones.
        with torch.inference_mode(False):
            tensor = torch.Tensor._make_wrapper_subclass(
                cls,
                values.shape,
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                device=DEVICE,
            )
        tensor.host_values = values
        return tensor  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        assert cls.device_rules is not None, "a tensor of a pretended GPU that is gone"
        return cls.device_rules(operation, types, args, kwargs or {})

    # `torch.tensor([scalar])` asks the scalar itself, below where the rules could see it.

    def __float__(self) -> float:
        return float(self._number("float()"))

    def __int__(self) -> int:
        return int(self._number("int()"))

    def __index__(self) -> int:
        return int(self._number("int()"))

    def _number(self, operation: str) -> float:
        self.device_log.note(Kind.WAIT, operation)
        return self.host_values.item()

    def tolist(self) -> Any:
        """The values as numbers. Torch does not give those of a subclass."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """TypeError, as of any tensor that is not on the CPU."""
        if force:
            return self.cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def record_stream(self, stream: Any) -> None:
        """Nothing: this tells a GPU's allocator who else uses the memory."""

    def untyped_storage(self) -> torch.UntypedStorage:
        """The memory of its values."""
        return self.host_values.untyped_storage()

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def __format__(self, spec: str) -> str:
        self.device_log.note(Kind.WAIT, "format")
        return format(self.host_values, spec)

    # With these, torch.nn.Module.to replaces parameters by tensors of this class.

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["host_values"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, torch.Tensor], *_: Any) -> "DeviceTensor":
        return DeviceTensor(inner["host_values"])


class DeviceMode(TorchDispatchMode):
    """Hands over a thread's operations that have no tensor of the device yet: new tensors, and copies."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # With True, the answer of torch 2.13, each operation would go through torch's compiler.
        return False

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._rules(operation, types, args, kwargs or {})
