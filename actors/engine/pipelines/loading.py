"""From a model's name in the spec to a diffusers pipeline in memory."""

import inspect
import json
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.utils.deprecation_utils import _TRANSFORMERS_CLASS_REMAPPING
from huggingface_hub import hf_hub_download

from actors.checkpoints.checkpoint_folders import is_folder_name, local_folder
from actors.checkpoints.component_files import allows_pickles
from actors.engine.pipelines.pipeline_builder import pipeline_class
from actors.engine.pipelines.shared_modules import SharedModules
from actors.engine.quirks.clip_skip import enable_clip_skip
from actors.engine.quirks.float32_vae import keep_in_float32
from actors.engine.quirks.torch_errors import is_fatal, is_out_of_memory
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec

logger = logging.getLogger(__name__)

# A spec or a checkpoint must never bring code along.
os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")

# Depth-to-image checkpoints name a class that transformers 5 has no more. diffusers 0.42.1 has a table of
# such classes, with CLIP's alone in it.
_TRANSFORMERS_CLASS_REMAPPING["DPTFeatureExtractor"] = {
    "new_class": "DPTImageProcessorPil",
    "transformers_version": (">=", "5.0"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a worker loads every checkpoint."""

    device: torch.device
    with_checker: bool = True
    """Whether a checkpoint's safety checker is loaded too."""
    channels_last: bool = False
    """Whether convolutions get their numbers in the order that a GPU prefers."""


LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, ImportError, TypeError, AttributeError),
    # Weights of other shapes, or too few of them (transformers 5.23, torch 2.13); a pickle of other things.
    *(RuntimeError, UnpicklingError),
)
"""What the libraries raise for a checkpoint that is not as it should be."""


def on_this_machine(name: str, spec: ModelSpec, options: LoadOptions) -> ModelSpec:
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
        folder = _download(name, spec, options.with_checker)
    return spec.model_copy(update={"checkpoint": str(folder), "revision": None})


def _download(name: str, spec: ModelSpec, with_checker: bool) -> Path:
    logger.info("fetching model=%s checkpoint=%s revision=%s", name, spec.checkpoint, spec.revision)
    try:
        index = Path(hf_hub_download(spec.checkpoint, "model_index.json", revision=spec.revision))
        folder = pipeline_class(json.loads(index.read_bytes())["_class_name"]).download(
            spec.checkpoint,
            revision=spec.revision,
            variant=spec.variant,
            use_safetensors=_use_safetensors(),
            trust_remote_code=False,
            # What is given here is not downloaded.
            **({} if with_checker else {"safety_checker": None}),
        )
    except LOADING_ERRORS as error:
        raise SpecError(f"models.{name}: {spec.checkpoint} cannot be downloaded: {error}") from error
    return Path(folder)


def load(name: str, spec: ModelSpec, options: LoadOptions, shared: SharedModules) -> Any:
    """The checkpoint's own pipeline; SpecError where it cannot be had."""
    spec = on_this_machine(name, spec, options)
    folder = Path(spec.checkpoint)
    dtype = _dtype(spec.dtype, options.device)
    logger.info("loading model=%s checkpoint=%s dtype=%s device=%s", name, folder, dtype, options.device)
    try:
        index = diffusers.DiffusionPipeline.load_config(folder)
        pipeline = pipeline_class(index["_class_name"]).from_pretrained(
            folder,
            **shared.known(folder, spec, dtype)
            | _mended(index)
            | _checker_arguments(index, options.with_checker),
            variant=spec.variant,
            dtype=dtype,
            use_safetensors=_use_safetensors(),
            trust_remote_code=False,
        )
        if _has_safe_checker(index) and options.with_checker:
            pipeline.register_modules(safety_checker=_ordinary_checker(folder, spec, dtype))
        # Weights that are missing are noticed here.
        pipeline = pipeline.to(options.device)
    except LOADING_ERRORS as error:
        if is_out_of_memory(error) or is_fatal(error):
            raise  # the machine's, not the checkpoint's
        raise SpecError(f"models.{name}: {folder} cannot be loaded: {_said(error)}") from error
    enable_clip_skip(getattr(pipeline, "text_encoder", None))
    for module in (pipeline.unet, pipeline.vae) if options.channels_last else ():
        module.to(memory_format=torch.channels_last)
    keep_in_float32(pipeline)
    shared.add(folder, spec, dtype, pipeline.components)
    return pipeline


def _said(error: Exception) -> str:
    """Its message, or what it is about where that is no more than a pointer to a log."""
    text = str(error)
    if isinstance(error, NotImplementedError):
        return f"weights are missing ({text})"
    if "ignore_mismatched_sizes" in text:
        return f"weights have other shapes than its configuration says ({text})"
    return text


def _mended(index: Mapping[str, Any]) -> dict[str, Any]:
    """Components that diffusers 0.42.1 cannot load as published checkpoints name them."""
    return {"safety_checker": None} if _has_safe_checker(index) else {}


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
        use_safetensors=_use_safetensors(),
    )


def _use_safetensors() -> bool | None:
    """For diffusers: with None, its default, pickles are downloaded and read where there is nothing else."""
    return None if allows_pickles() else True


def _checker_arguments(index: Mapping[str, Any], with_checker: bool) -> dict[str, Any]:
    """Without a checker diffusers would warn; the plan has said so. Switched off, none is loaded."""
    taken = inspect.signature(pipeline_class(index["_class_name"])).parameters
    wanted: dict[str, Any] = {"requires_safety_checker": False}
    if not with_checker:
        wanted["safety_checker"] = None
    return {name: value for name, value in wanted.items() if name in taken}


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    dtype: torch.dtype = getattr(torch, name)
    return dtype
