"""Whole jobs on the pretended GPU, and what they asked it for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from actors.engine.batching.merge_points import find_merge_points
from actors.engine.batching.merged_modules import MergePoint
from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.engine import DeviceUse, Generated
from actors.engine.pipelines.loaded_model import LoadedModel
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from actors.rows.opened_rows import OpenedRow
from models.demo_cache import RANDOM_KINDS
from schemas.spec.job_spec import JobSpec, ModelSpec
from tests.support.in_process import Made, make
from tests.support.pretended_gpu.device_events import DeviceEvent, DeviceLog
from tests.support.pretended_gpu.device_tensor import DEVICE
from tests.support.pretended_gpu.pretended_cuda import PretendedGPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """A job's results, and what they asked the device for."""

    made: Made
    events: Sequence[DeviceEvent]
    unet_calls: Mapping[str | None, int]
    """By row, how often its call came to the UNet."""
    unet_batches: int
    """How often the UNet ran for several calls at once."""


def models_on_device(dtype: str, gpu: PretendedGPU) -> ModelCache:
    """All demo checkpoints with random weights, by their kind, on the device."""
    specs = {kind: ModelSpec(checkpoint=f"demo:{kind}", dtype=dtype) for kind in RANDOM_KINDS}
    models = ModelCache(specs, LoadOptions(device=DEVICE), capacity_bytes=10**12)
    watch_modules(models, specs, gpu)
    return models


def watch_modules(models: ModelCache, names: Iterable[str], gpu: PretendedGPU) -> None:
    """Load the models with these names, and tell the log of the calls of their modules."""
    # Checkpoints with equal weights share a module.
    points = {id(point.module): point for name in names for point in _merge_points(models.get(name))}
    for point in points.values():
        watch(point.name, point.module, gpu.log)


def _merge_points(model: LoadedModel) -> Iterator[MergePoint]:
    checker = model.safety_checker and model.safety_checker.checker
    return find_merge_points({**model.components, "safety_checker": checker})


def audit(spec: JobSpec, models: ModelCache, gpu: PretendedGPU) -> Audited:
    """Run a job and keep what it asked the device for."""
    gpu.log.clear()
    engine = _EngineOnDevice(DiffusersEngine(models, spec), gpu)
    made = make(spec, engine)
    return Audited(
        made=made,
        events=tuple(gpu.log.events),
        unet_calls=gpu.log.unet_calls.copy(),
        unet_batches=engine.unet_batches,
    )


class _EngineOnDevice:
    """An engine whose thread has the pretended GPU: a worker generates on a thread of its own."""

    num_loads = 0
    heartbeats = 0
    phase = ""
    num_steps = 0
    use = DeviceUse()

    def __init__(self, engine: DiffusersEngine, gpu: PretendedGPU) -> None:
        self._engine = engine
        self._gpu = gpu

    @property
    def models_loaded(self) -> tuple[str, ...]:
        """The names of the models in memory."""
        return self._engine.models_loaded

    @property
    def unet_batches(self) -> int:
        """How often the UNet has run for calls that were suspended at it."""
        unet = self._engine.counts.get("unet")
        return unet.batches if unet else 0

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield what the engine yields."""
        with self._gpu.on_this_thread():
            yield from self._engine.generate(rows, decoders)


def watch(name: str, module: torch.nn.Module, log: DeviceLog) -> None:
    """Tell the log when a call comes to the module, and when the module runs.

    They are two moments: a call that comes to a module is suspended, and the module runs for several calls.
    """
    forward = module.forward

    @wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        with log.within(name):
            return forward(*args, **kwargs)

    module.forward = watched
    module.register_forward_pre_hook(lambda *_: log.arrive(name))
    module.register_forward_hook(lambda *_: log.leave())
