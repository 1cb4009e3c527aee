"""Checkpoints in memory: each loaded once, shared by every pipeline that can use its components."""

import copy
import inspect
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import torch

from actors.checkpoints import local_folder, weight_bytes_on_disk
from actors.clip_skip import enable_clip_skip
from schemas.errors import RowError, SpecError
from schemas.spec import ModelSpec
from schemas.systems import System

logger = logging.getLogger(__name__)

# A spec or a checkpoint must never bring code along.
os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")


class LoadedModel:
    """One checkpoint's components on a device, and the pipelines built from them."""

    def __init__(self, name: str, spec: ModelSpec, device: torch.device) -> None:
        self._base = _load(name, spec, device)
        self._pipelines: dict[str, Any] = {}
        self.weight_bytes = weight_bytes(self._base.components)

    def pipeline(self, system: System, scheduler: str | None) -> Any:
        """The system's pipeline on the shared components, with a scheduler of its own for this call."""
        pipeline = self._pipelines.get(system.pipeline)
        if pipeline is None:
            pipeline = self._pipelines[system.pipeline] = self._build(system)
        # The scheduler keeps a call's state (timesteps, past model outputs): never share one.
        pipeline.scheduler = self._scheduler(scheduler)
        return pipeline

    def _build(self, system: System) -> Any:
        cls = getattr(diffusers, system.pipeline)
        pipeline = cls(**_arguments(cls, self._base))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _scheduler(self, name: str | None) -> Any:
        published = self._base.scheduler
        if name is None or name == type(published).__name__:
            return copy.deepcopy(published)
        compatible = {cls.__name__: cls for cls in published.compatibles}
        if name not in compatible:
            raise RowError(
                "invalid_scheduler",
                f"{name} does not fit this checkpoint's {type(published).__name__}; "
                f"these do: {', '.join(sorted(compatible))}",
            )
        return compatible[name].from_config(published.config)


def _load(name: str, spec: ModelSpec, device: torch.device) -> Any:
    folder = local_folder(spec)
    dtype = _dtype(spec.dtype, device)
    logger.info("loading model=%s checkpoint=%s dtype=%s device=%s", name, spec.checkpoint, dtype, device)
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder or spec.checkpoint,
            revision=None if folder else spec.revision,
            variant=spec.variant,
            dtype=dtype,
            # None, the default, falls back to pickles, which run code when they are read.
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(f"models.{name}: {spec.checkpoint} cannot be loaded: {error}") from error
    enable_clip_skip(getattr(pipeline, "text_encoder", None))
    return pipeline.to(device)


def _arguments(cls: Any, base: Any) -> dict[str, Any]:
    """What `cls` takes of a base pipeline: its components and the switches of its configuration.

    Not `cls.from_pipe(base)`: without a dtype that casts the shared weights to float32 in place
    (diffusers 0.42.1).
    """
    parameters = inspect.signature(cls).parameters
    available: Mapping[str, Any] = {**base.config, **base.components}
    return {name: available[name] for name in parameters if name in available}


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def weight_bytes(components: Mapping[str, Any]) -> int:
    """Bytes of weights in memory, each tensor's storage counted once however many modules share it."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in components.values()
        if isinstance(module, torch.nn.Module)
        for tensor in _tensors(module)
    }
    return sum(storages.values())


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


class ModelCache:
    """The models a worker holds, the one used longest ago first to go when the bytes run out."""

    def __init__(self, specs: Mapping[str, ModelSpec], device: torch.device, capacity_bytes: int) -> None:
        self._specs = specs
        self._device = device
        self._capacity_bytes = capacity_bytes
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self.num_loads = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The models in memory, the latest used last."""
        return tuple(self._models)

    def get(self, name: str) -> LoadedModel:
        """The model, loaded now if it is not in memory."""
        if name not in self._models:
            self._make_room(name)
            self._models[name] = LoadedModel(name, self._specs[name], self._device)
            self.num_loads += 1
            self._evict(keep=name)
        self._models.move_to_end(name)
        return self._models[name]

    def _make_room(self, name: str) -> None:
        """Before loading, by the weights' size on disk: both models would not fit together."""
        folder = local_folder(self._specs[name])
        if folder is None:
            return
        coming = weight_bytes_on_disk(folder)
        while self._models and self._bytes() + coming > self._capacity_bytes:
            self._drop_oldest()

    def _evict(self, keep: str) -> None:
        while self._bytes() > self._capacity_bytes and next(iter(self._models)) != keep:
            self._drop_oldest()

    def _bytes(self) -> int:
        return sum(model.weight_bytes for model in self._models.values())

    def _drop_oldest(self) -> None:
        name, _ = self._models.popitem(last=False)
        logger.info("dropped model=%s to make room", name)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
