"""What a GPU does with each operation of torch: what it refuses, what the host waits for, what is copied."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import Any

import torch

from tests.support.pretended_gpu.device_events import DeviceLog, Kind
from tests.support.pretended_gpu.device_tensor import DeviceMode, DeviceTensor

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]

WAITS = frozenset(
    {
        # A value of the device becomes a number of the host: `item()`, `bool()`, `if`, `allclose`.
        *("_local_scalar_dense", "equal"),
        # The size of the result depends on values.
        *("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
        "repeat_interleave",
        # Solvers look whether they have failed.
        *("_linalg_check_errors", "linalg_lstsq", "linalg_eig", "linalg_eigh"),
    }
)
"""The operations whose result the host needs before it can go on."""

INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
TAKE_HOST_SCALARS = frozenset({"fill_", "fill", "masked_fill", "masked_fill_", "lerp", "lerp_"})
"""Operations beside pointwise ones that take a host tensor without dimensions: it becomes a number."""

WHOLE = frozenset(
    {"linear", "conv1d", "conv2d", "layer_norm", "group_norm", "embedding", "scaled_dot_product_attention"}
)
"""Composite operations that run as one: a GPU has kernels of their own for them."""

HALVES = frozenset({torch.float16, torch.bfloat16})
SLOW_IN_HALVES = frozenset({"linear", "conv2d"})
"""Operations that a CPU does several times as fast in float32, in which a GPU sums their products as well."""

WITHOUT_KERNEL = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach_", "lift_fresh"}
)
"""Operations that only reserve memory, or only change what a tensor says of itself."""


class DispatchRules:
    """Carries operations out: on the CPU, with the limits of a GPU."""

    def __init__(self, log: DeviceLog) -> None:
        self._log = log
        self.mode = DeviceMode(self)
        """Hands over the operations without a tensor of the device; a thread is under it or not."""
        self._special: Mapping[str, Callable[[Any, Arguments, Named], Any]] = {
            "to": self._convert,
            "_to_copy": self._convert,
            "copy_": self._copy,
            "pin_memory": self._pin,
            "_pin_memory": self._pin,
            "is_pinned": lambda operation, args, named: _is_pinned(args[0]),
        }

    def __call__(self, operation: Any, types: Collection[type], args: Arguments, named: Named) -> Any:
        """The result of an operation; `types` are those of its tensors that are not plain ones.

        RuntimeError where a GPU would refuse it.
        """
        name, is_composite = _told_of(operation)
        special = self._special.get(name)
        if special is not None:
            return special(operation, args, named)
        if DeviceTensor not in types and not _for_device(named) and not named.get("pin_memory"):
            # Most operations are the host's own, such as a scheduler's arithmetic.
            return operation(*args, **named)
        if is_composite and name not in WHOLE:
            # In inference mode torch hands over whole operations: their parts are what a GPU gets.
            with self.mode:
                return operation.decompose(*args, **named)
        tensors = [*_tensors((args, named))]
        on_device = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        if on_device:
            self._check(name, operation, args, tensors)
            if name in WAITS:
                self._log.note(Kind.WAIT, name)
        return self._compute(name, operation, args, named, on_device)

    def _check(self, name: str, operation: Any, args: Arguments, tensors: list[torch.Tensor]) -> None:
        """Raise RuntimeError if tensors of the host and of the device meet where they must not."""
        if name in INDEXING:
            self._check_indices(name, args)
            return
        hosts = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
        if not hosts:
            return
        takes_scalars = torch.Tag.pointwise in operation.tags or name in TAKE_HOST_SCALARS
        changes_host = operation._schema.is_mutable and not isinstance(args[0], DeviceTensor)
        if changes_host or not takes_scalars or any(tensor.dim() for tensor in hosts):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in hosts)
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {operation} got cuda:0 and cpu {shapes}"
            )

    def _check_indices(self, name: str, args: Arguments) -> None:
        indexed, indices = args[0], [*_tensors(args[1])]
        if not isinstance(indexed, DeviceTensor):
            raise RuntimeError("indices should be on the same device as the indexed tensor (cpu)")
        # Torch fills what one mask chooses with one value, without counting it.
        fills = name != "index" and len(indices) == 1 and args[2].numel() == 1
        for index in indices:
            if not isinstance(index, DeviceTensor):
                self._log.note(Kind.COPY, name)
                self._log.note(Kind.WAIT, name)
            elif index.dtype in (torch.bool, torch.uint8) and not fills:
                self._log.note(Kind.WAIT, name)

    def _compute(
        self, name: str, operation: Any, args: Arguments, named: Named, on_device: list[DeviceTensor]
    ) -> Any:
        to_device = bool(on_device) if named.get("device") is None else _for_device(named)
        generator = named.get("generator")
        if generator is not None and generator.device.type != ("cuda" if to_device else "cpu"):
            raise RuntimeError(f"a generator of the {generator.device.type} for a tensor of another device")
        # This torch may have no memory to pin.
        result = _result(name, operation, _on_cpu(args), _on_cpu(_without_pinning(named)))
        known: dict[int, torch.Tensor] = {id(tensor.host_values): tensor for tensor in on_device}
        if not to_device:
            for tensor in _tensors(result) if named.get("pin_memory") else ():
                tensor.pinned = True  # type: ignore[attr-defined]
            return _mapped(result, lambda tensor: known.get(id(tensor), tensor))
        if self._log.module is None and name not in WITHOUT_KERNEL:
            storages = {_storage(tensor.host_values) for tensor in on_device}
            if operation._schema.is_mutable or any(
                _storage(each) not in storages for each in _tensors(result)
            ):
                self._log.note(Kind.KERNEL, name)
        # An operation such as `add_` gives back its own tensor.
        return _mapped(
            result, lambda tensor: known[id(tensor)] if id(tensor) in known else DeviceTensor(tensor)
        )

    def _convert(self, operation: Any, args: Arguments, named: Named) -> Any:
        """A tensor with another dtype or on another device."""
        source = args[0]
        from_device = isinstance(source, DeviceTensor)
        target = _target(operation, args, named)
        to_device = from_device if target is None else target.type == "cuda"
        queued = bool(_argument(operation, args, named, "non_blocking"))
        values = source.host_values if from_device else source
        result = operation(*_on_cpu(args), **_on_cpu(_without_pinning(named)))
        if from_device == to_device:
            if not from_device:
                return result
            if result is values:
                return source
            self._log.note(Kind.KERNEL, "to")
            return DeviceTensor(result)
        result = result.clone() if _storage(result) == _storage(values) else result
        if to_device:
            self._note_copy_to_device("to", source, queued=queued)
            if queued and result.dtype != values.dtype:
                # Copies that wait convert on the host, others on the device.
                self._log.note(Kind.KERNEL, "to")
            return DeviceTensor(result)
        if not queued:
            self._log.note(Kind.WAIT, "to")
        # Torch pins the memory of a copy to the host that nobody waits for.
        result.pinned = queued
        return result

    def _copy(self, operation: Any, args: Arguments, named: Named) -> Any:
        """The first tensor, with the values of the second."""
        target, source = args[0], args[1]
        queued = bool(_argument(operation, args, named, "non_blocking"))
        _on_cpu(target).copy_(_on_cpu(source))
        if isinstance(target, DeviceTensor) and isinstance(source, DeviceTensor):
            self._log.note(Kind.KERNEL, "copy_")
        elif isinstance(target, DeviceTensor):
            self._note_copy_to_device("copy_", source, queued=queued)
        elif isinstance(source, DeviceTensor) and not (queued and _is_pinned(target)):
            self._log.note(Kind.WAIT, "copy_")
        return target

    def _note_copy_to_device(self, operation: str, source: torch.Tensor, *, queued: bool) -> None:
        self._log.note(Kind.COPY, operation)
        if not (queued and _is_pinned(source)):
            self._log.note(Kind.WAIT, operation)

    def _pin(self, operation: Any, args: Arguments, named: Named) -> torch.Tensor:
        """The tensor in memory from which a GPU copies by itself."""
        source = args[0]
        if isinstance(source, DeviceTensor):
            raise RuntimeError("cannot pin 'torch.cuda.Tensor', only dense CPU tensors can be pinned")
        if _is_pinned(source):
            return source
        # Torch 2.13 copies into memory of the same strides. It refuses a tensor that was expanded.
        pinned = torch.empty_strided(source.shape, source.stride(), dtype=source.dtype).copy_(source)
        pinned.pinned = True  # type: ignore[attr-defined]
        return pinned


@cache
def _told_of(operation: Any) -> tuple[str, bool]:
    """The operation's name, and whether it is made of others."""
    is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        operation.name(), "CompositeImplicitAutograd"
    )
    return operation._schema.name.removeprefix("aten::"), is_composite


def _result(name: str, operation: Any, args: Arguments, named: Named) -> Any:
    """What the operation gives on the CPU."""
    # Tensors of several dtypes are left to torch, which refuses them.
    dtypes = {tensor.dtype for tensor in _tensors(args)} if name in SLOW_IN_HALVES else set()
    if len(dtypes) != 1 or not dtypes <= HALVES:
        return operation(*args, **named)
    return operation(*_mapped(args, torch.Tensor.float), **named).to(*dtypes)


def _for_device(named: Named) -> bool:
    """Whether the arguments ask for a new tensor on the device."""
    device = named.get("device")
    return device is not None and torch.device(device).type == "cuda"


def _without_pinning(named: Named) -> Named:
    return {key: value for key, value in named.items() if key != "pin_memory"}


def _target(operation: Any, args: Arguments, named: Named) -> torch.device | None:
    """The device to which a tensor is to be converted; None if it stays where it is."""
    other = _argument(operation, args, named, "other")
    if other is not None:
        return other.device  # type: ignore[no-any-return]
    device = _argument(operation, args, named, "device")
    return None if device is None else torch.device(device)


def _argument(operation: Any, args: Arguments, named: Named, name: str) -> Any:
    """The argument of this name, wherever it is; None if it is left out."""
    for position, argument in enumerate(operation._schema.arguments):
        if argument.name == name:
            return args[position] if position < len(args) else named.get(name)
    return None


def _is_pinned(tensor: torch.Tensor) -> bool:
    return bool(getattr(tensor, "pinned", False))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in an operation's arguments or result."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)


def _on_cpu(value: Any) -> Any:
    """The same arguments for the CPU."""
    if isinstance(value, DeviceTensor):
        return value.host_values
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    if isinstance(value, (tuple, list)):
        return type(value)(map(_on_cpu, value))
    if isinstance(value, dict):
        return {key: _on_cpu(each) for key, each in value.items()}
    return value


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The result of an operation with each tensor replaced."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(each, change) for each in value)
    return value
