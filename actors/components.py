"""Checkpoints in memory: each loaded once, shared by every pipeline that can use its components."""

import copy
import inspect
import json
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from weakref import ref

import diffusers
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from huggingface_hub import hf_hub_download
from transformers import DPTImageProcessorPil

from actors.checkpoints import is_folder_name, local_folder
from actors.clip_skip import enable_clip_skip
from actors.component_files import ComponentFiles, component_files, files_in
from actors.ldm3d import LDM3DImageProcessor
from actors.ldm3d_upscale import StableDiffusionUpscaleLDM3DPipeline
from actors.safety import checker_of
from schemas.errors import RowError, SpecError
from schemas.schedulers import parse_options
from schemas.spec import ModelSpec
from schemas.systems import System

logger = logging.getLogger(__name__)

SCHEDULERS_KEPT = 64
"""Of a model, each with its options; made again when another one has pushed it out."""

# A spec or a checkpoint must never bring code along.
os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")


class LoadedModel:
    """One checkpoint's components on a device, and the pipelines built from them."""

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        device: torch.device,
        shared: "SharedModules | None" = None,
        *,
        with_checker: bool = True,
    ) -> None:
        self._base = _load(name, spec, device, shared or SharedModules(), with_checker)
        self.safety_checker = checker_of(self._base)
        self._pipelines: dict[str, Any] = {}
        self._fresh_scheduler = lru_cache(SCHEDULERS_KEPT)(partial(_new_scheduler, self._base.scheduler))

    @property
    def components(self) -> Mapping[str, Any]:
        """What the checkpoint is made of."""
        return self._base.components  # type: ignore[no-any-return]

    @property
    def weight_bytes(self) -> int:
        """Of its weights in memory."""
        return weight_bytes(self.components)

    def pipeline(self, system: System, scheduler: str | None, options: str | None = None) -> Any:
        """The system's pipeline on the shared components, with a scheduler of its own for this call.

        `options` is a JSON text; RowError where diffusers does not take them.
        """
        pipeline = self._pipelines.get(system.pipeline)
        if pipeline is None:
            pipeline = self._pipelines[system.pipeline] = self._build(system)
        # The scheduler keeps a call's state (timesteps, past model outputs): never share one.
        pipeline.scheduler = copy.deepcopy(self._fresh_scheduler(scheduler, options))
        return pipeline

    def _build(self, system: System) -> Any:
        cls = pipeline_class(system.pipeline)
        pipeline = cls(**_arguments(cls, self._base))
        if system.gives_depth and hasattr(pipeline, "image_processor"):
            pipeline.image_processor = LDM3DImageProcessor()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _new_scheduler(published: Any, name: str | None, options: str | None) -> Any:
    """A scheduler that has not run: the published one, changed as the row says.

    That takes up to a third of a second (KDPM2's class computes a thousand steps when it is made), a copy
    of it 0.3 ms.
    """
    changes = parse_options(options) if options else {}
    name = name or type(published).__name__
    if name == type(published).__name__ and not changes:
        return published
    try:
        return getattr(diffusers, name).from_config(published.config, **changes)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, ImportError) as error:
        raise RowError("invalid_scheduler", f"{name} with {options or 'no options'}: {error}") from error


def pipeline_class(name: str) -> Any:
    """diffusers' class, or darkroom's own where diffusers has none."""
    return OWN_PIPELINES.get(name) or getattr(diffusers, name)


OWN_PIPELINES: dict[str, Any] = {"StableDiffusionUpscaleLDM3DPipeline": StableDiffusionUpscaleLDM3DPipeline}

LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError)
"""What diffusers and huggingface_hub raise for a checkpoint that is not as it should be."""


def on_this_machine(name: str, spec: ModelSpec, *, with_checker: bool = True) -> ModelSpec:
    """The same model with a folder of this machine for its checkpoint.

    Of a Hub repository, what diffusers would load is downloaded now, into the Hub's own cache.
    """
    folder = local_folder(spec)
    if folder is None:
        if is_folder_name(spec.checkpoint):
            raise SpecError(
                f"models.{name}.checkpoint: the folder {spec.checkpoint} does not exist on "
                f"{socket.gethostname()}; it must be one that every machine of the cluster shares, "
                "or a Hub repository"
            )
        folder = _download(name, spec, with_checker)
    return spec.model_copy(update={"checkpoint": str(folder), "revision": None})


def _download(name: str, spec: ModelSpec, with_checker: bool) -> Path:
    logger.info("fetching model=%s checkpoint=%s revision=%s", name, spec.checkpoint, spec.revision)
    try:
        index = Path(hf_hub_download(spec.checkpoint, "model_index.json", revision=spec.revision))
        folder = _loader(json.loads(index.read_bytes())).download(
            spec.checkpoint,
            revision=spec.revision,
            variant=spec.variant,
            # None, the default, downloads pickles where there is nothing else.
            use_safetensors=True,
            trust_remote_code=False,
            # What is given here is not downloaded.
            **({} if with_checker else {"safety_checker": None}),
        )
    except LOADING_ERRORS as error:
        raise SpecError(f"models.{name}: {spec.checkpoint} cannot be downloaded: {error}") from error
    return Path(folder)


def _load(
    name: str, spec: ModelSpec, device: torch.device, shared: "SharedModules", with_checker: bool
) -> Any:
    spec = on_this_machine(name, spec, with_checker=with_checker)
    folder = Path(spec.checkpoint)
    dtype = _dtype(spec.dtype, device)
    logger.info("loading model=%s checkpoint=%s dtype=%s device=%s", name, folder, dtype, device)
    try:
        index = diffusers.DiffusionPipeline.load_config(folder)
        pipeline = _loader(index).from_pretrained(
            folder,
            **shared.known(folder, spec, dtype)
            | _mended(index, folder)
            | _checker_arguments(index, with_checker),
            variant=spec.variant,
            dtype=dtype,
            # None, the default, falls back to pickles, which run code when they are read.
            use_safetensors=True,
            trust_remote_code=False,
        )
        if _has_safe_checker(index) and with_checker:
            pipeline.register_modules(safety_checker=_ordinary_checker(folder, spec, dtype))
    except LOADING_ERRORS as error:
        raise SpecError(f"models.{name}: {folder} cannot be loaded: {error}") from error
    enable_clip_skip(getattr(pipeline, "text_encoder", None))
    pipeline = pipeline.to(device)
    shared.add(folder, spec, dtype, pipeline.components)
    return pipeline


def _loader(index: Mapping[str, Any]) -> Any:
    """Its own class for a pipeline that diffusers has not; diffusers' loader would look for it in vain."""
    return OWN_PIPELINES.get(index["_class_name"], diffusers.DiffusionPipeline)


def _mended(index: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Components that diffusers 0.42.1 cannot load as published checkpoints name them."""
    mended: dict[str, Any] = {}
    if _has_safe_checker(index):
        mended["safety_checker"] = None
    if (index.get("feature_extractor") or [None, None])[1] == "DPTFeatureExtractor":
        mended["feature_extractor"] = DPTImageProcessorPil.from_pretrained(
            folder, subfolder="feature_extractor"
        )
    return mended


def _has_safe_checker(index: Mapping[str, Any]) -> bool:
    """Whether it has Safe's own checker, whose class has moved and does not load under transformers 5."""
    _, name = index.get("safety_checker") or (None, None)
    return bool(name == "SafeStableDiffusionSafetyChecker")


def _ordinary_checker(folder: Path, spec: ModelSpec, dtype: torch.dtype) -> Any:
    """Stable Diffusion's checker with Safe's weights: the same network, but Safe's does not blacken."""
    return StableDiffusionSafetyChecker.from_pretrained(
        folder,
        subfolder="safety_checker",
        variant=spec.variant,
        dtype=dtype,
        use_safetensors=True,
    )


def _checker_arguments(index: Mapping[str, Any], with_checker: bool) -> dict[str, Any]:
    """Without a checker diffusers would warn; the plan has said so. Switched off, none is loaded."""
    taken = inspect.signature(pipeline_class(index["_class_name"])).parameters
    wanted: dict[str, Any] = {"requires_safety_checker": False}
    if not with_checker:
        wanted["safety_checker"] = None
    return {name: value for name, value in wanted.items() if name in taken}


def _arguments(cls: Any, base: Any) -> dict[str, Any]:
    """What `cls` takes of a base pipeline: its components and the switches of its configuration, but no
    safety checker (actors/safety.py says why).

    Not `cls.from_pipe(base)`: without a dtype that casts the shared weights to float32 in place
    (diffusers 0.42.1).
    """
    parameters = inspect.signature(cls).parameters
    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    available: Mapping[str, Any] = {**base.config, **base.components, **unchecked}
    return {name: available[name] for name in parameters if name in available}


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def weight_bytes(components: Mapping[Any, Any]) -> int:
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


class SharedModules:
    """Modules in memory by the content of their files: two checkpoints with the same VAE hold it once.

    It keeps none alive: a module goes when the last model that uses it goes.
    """

    def __init__(self) -> None:
        self._alike: dict[tuple[object, ...], list[tuple[ComponentFiles, ref[torch.nn.Module]]]] = {}

    def known(self, folder: Path, spec: ModelSpec, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
        """The checkpoint's components that are in memory already, by name."""
        found = {}
        for component in component_files(files_in(folder), spec.variant):
            for other, module in self._alike.get((dtype, component.looks_like()), []):
                # Gigabytes are hashed only here, where a component of the same kind and size is in memory.
                alive = module()
                if alive is not None and other.content() == component.content():
                    found[component.name] = alive
        return found

    def add(self, folder: Path, spec: ModelSpec, dtype: torch.dtype, components: Mapping[str, Any]) -> None:
        """Remember a checkpoint's components."""
        for component in component_files(files_in(folder), spec.variant):
            module = components.get(component.name)
            if isinstance(module, torch.nn.Module):
                alike = self._alike.setdefault((dtype, component.looks_like()), [])
                alike[:] = [pair for pair in alike if pair[1]() is not None]
                alike.append((component, ref(module)))


class ModelCache:
    """The models a worker holds, the one used longest ago first to go when the bytes run out."""

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        device: torch.device,
        capacity_bytes: int,
        *,
        with_checkers: bool = True,
    ) -> None:
        self._specs = specs
        self._with_checkers = with_checkers
        self._device = device
        self._capacity_bytes = capacity_bytes
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._shared = SharedModules()
        self.num_loads = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The models in memory, the latest used last."""
        return tuple(self._models)

    def get(self, name: str) -> LoadedModel:
        """The model, loaded now if it is not in memory."""
        if name not in self._models:
            spec = on_this_machine(name, self._specs[name], with_checker=self._with_checkers)
            self._make_room(spec)
            self._models[name] = LoadedModel(
                name, spec, self._device, self._shared, with_checker=self._with_checkers
            )
            self.num_loads += 1
            self._evict(keep=name)
        self._models.move_to_end(name)
        return self._models[name]

    def _make_room(self, spec: ModelSpec) -> None:
        """Before loading, by the weights' size on disk: both models would not fit together."""
        parts = component_files(files_in(Path(spec.checkpoint)), spec.variant)
        coming = sum(part.size_bytes for part in parts)
        while self._models and self._bytes() + coming > self._capacity_bytes:
            self._drop_oldest()

    def _evict(self, keep: str) -> None:
        while self._bytes() > self._capacity_bytes and next(iter(self._models)) != keep:
            self._drop_oldest()

    def _bytes(self) -> int:
        together = [module for model in self._models.values() for module in model.components.values()]
        return weight_bytes(dict(enumerate(together)))

    def _drop_oldest(self) -> None:
        name, _ = self._models.popitem(last=False)
        logger.info("dropped model=%s to make room", name)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
