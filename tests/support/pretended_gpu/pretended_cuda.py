"""The pretended GPU as a context: torch says that it has one GPU, and its tensors are `DeviceTensor`s."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import pytest
import torch

from tests.support.pretended_gpu.device_events import DeviceLog, Kind
from tests.support.pretended_gpu.device_tensor import DeviceTensor
from tests.support.pretended_gpu.dispatch_rules import DispatchRules

_CUDA, _LAZY = 1, 17
"""The numbers of device types in torch (c10/core/DeviceType.h)."""
_MEMORY_BYTES = 141 << 30


class PretendedGPU:
    """The GPU of a process, while `pretended_gpu` runs."""

    def __init__(self) -> None:
        self.log = DeviceLog()
        self.rules = DispatchRules(self.log)

    @contextmanager
    def on_this_thread(self) -> Iterator[None]:
        """While the block runs, this thread can put tensors onto the device."""
        lifts_only_cpu_tensors = torch._C._only_lift_cpu_tensors()
        # `torch.tensor(..., device="cuda")` then makes a tensor of the host and copies it, as a mode can see.
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with self.rules.mode:
                yield
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts_only_cpu_tensors)


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """While the block runs, torch says that it has a GPU, and this thread can use it."""
    _set_device_guard()
    gpu = PretendedGPU()
    with pytest.MonkeyPatch.context() as patch:
        for name, function in _functions(gpu.log).items():
            patch.setattr(torch.cuda, name, function)
        patch.setattr(DeviceTensor, "device_rules", staticmethod(gpu.rules))
        patch.setattr(DeviceTensor, "device_log", gpu.log, raising=False)
        with gpu.on_this_thread():
            yield gpu


def _set_device_guard() -> None:
    """Give torch a guard of CUDA devices that does nothing.

    Torch's C++ code asks for a guard wherever it indexes a tensor, or makes one on a device. A build with
    CUDA has one that asks the driver; on a machine without a GPU, torch 2.13 itself replaces it, for
    FakeTensorMode. A build without CUDA has none. It gets the one of lazy tensors, which has no devices
    either, and which torch replaces then. So no compiler is needed.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / _library_name()))
    guards = (ctypes.c_void_p * (_LAZY + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    if guards[_CUDA] is None:
        guards[_CUDA] = guards[_LAZY]
    torch._C._ensureCUDADeviceGuardSet()


def _library_name() -> str:
    return next(path.name for path in (Path(torch.__file__).parent / "lib").glob("libc10.*"))


class _Stream:
    """A queue of the device's work. Here all work is done at once."""

    def __init__(self, log: DeviceLog) -> None:
        self._log = log

    def wait_stream(self, stream: "_Stream") -> None:
        """Let later work wait for the other stream; the host goes on."""

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._log.note(Kind.WAIT, "Stream.synchronize")

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Event:
    """A mark in a stream. It happens when somebody waits for it, as on a device with much work."""

    def __init__(self, log: DeviceLog) -> None:
        self._log = log

    def record(self, stream: _Stream | None = None) -> None:
        """Put the mark behind the stream's work."""

    def query(self) -> bool:
        """Whether it has happened."""
        return False

    def synchronize(self) -> None:
        """Wait until it has happened."""
        self._log.note(Kind.WAIT, "Event.synchronize")


def _functions(log: DeviceLog) -> dict[str, Any]:
    """The functions of `torch.cuda` that ask for a driver, by name."""
    stream = _Stream(log)
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda *_: SimpleNamespace(name="pretended", total_memory=_MEMORY_BYTES),
        "empty_cache": lambda: None,
        "synchronize": lambda *_: log.note(Kind.WAIT, "synchronize"),
        "current_stream": lambda *_: stream,
        "stream": lambda each: each,
        "Stream": lambda *_: stream,
        "Event": lambda *_, **__: _Event(log),
    }
