"""From a model's name in the spec to a diffusers pipeline in memory."""

import inspect
import json
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import diffusers
import torch
from huggingface_hub import hf_hub_download

from actors.checkpoints.checkpoint_folders import is_folder_name, local_folder
from actors.checkpoints.component_files import allows_pickles
from actors.checkpoints.hub import HUB_ERRORS, ask_hub
from actors.checkpoints.single_files.single_file import is_single_file
from actors.engine.adapters.learned_tokens import learn_tokens
from actors.engine.pipelines.kernels import fuse_projections
from actors.engine.pipelines.pipeline_builder import pipeline_class
from actors.engine.pipelines.prepared_folders import folder_with_components, single_file_folder
from actors.engine.pipelines.shared_modules import SharedModules
from actors.engine.quirks.clip_skip import enable_clip_skip
from actors.engine.quirks.float32_vae import keep_in_float32
from actors.engine.quirks.published_components import (
    checker_with_safes_weights,
    has_safe_checker,
    omitted_components,
)
from actors.engine.quirks.torch_errors import is_fatal, is_out_of_memory
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec, ModelSpec
from schemas.systems.model_card import EmbeddingFile

logger = logging.getLogger(__name__)

# A spec or a checkpoint must never bring code that is run.
os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a worker loads all its checkpoints."""

    device: torch.device
    with_checker: bool = True
    """Whether a checkpoint's safety checker is loaded too."""
    channels_last: bool = False
    """Whether the UNet and the VAE have the memory format torch.channels_last."""
    fuse_qkv: bool = False
    """Whether the UNet computes queries, keys and values in one product."""
    vae_dtype: str = "auto"
    """The precision in which a VAE decodes that float16 does not hold: `auto` is float32."""
    deadline_s: float = 900.0
    """How long a download is tried again while the Hub is in trouble."""
    embeddings: Mapping[str, Mapping[str, EmbeddingFile]] = field(default_factory=dict)
    """The learned tokens that a checkpoint is loaded with, by model and token."""

    @classmethod
    def of(
        cls,
        spec: JobSpec,
        device: torch.device,
        embeddings: Mapping[str, Mapping[str, EmbeddingFile]] | None = None,
    ) -> "LoadOptions":
        """The options of a job's workers on this device."""
        channels_last = spec.kernels.channels_last
        if channels_last == "auto":
            # torch 2.13 normalises groups on CUDA in the usual format, so blocks that are not compiled
            # change the format twice at each normalisation.
            channels_last = device.type == "cuda" and spec.batching.compile
        return cls(
            device=device,
            with_checker=spec.safety.checker == "on",
            channels_last=channels_last,
            fuse_qkv=spec.kernels.fuse_qkv,
            vae_dtype=spec.kernels.vae_dtype,
            deadline_s=spec.errors.storage_deadline_s,
            embeddings=embeddings or {},
        )


LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, ImportError, TypeError, AttributeError),
    # Weights of other shapes, or too few of them (transformers 5.23, torch 2.13); a pickle of other things.
    *(RuntimeError, UnpicklingError),
)
"""The errors that the libraries raise for a faulty checkpoint."""


def on_this_machine(name: str, spec: ModelSpec, options: LoadOptions) -> ModelSpec:
    """The same model, with a folder of this machine as its checkpoint.

    If the checkpoint is a Hub repository, the files that diffusers loads are downloaded now, into the Hub's
    own cache, where a lock lets one process at a time fetch a file. A single file is converted, unless this
    machine has its folder, and components that are named by themselves take their places. SpecError if the
    folder or the repository does not exist, StorageError if the Hub is in trouble beyond the deadline.
    """
    folder = local_folder(spec)
    if folder is None and is_single_file(spec.checkpoint):
        folder = single_file_folder(name, spec, options.deadline_s)
    if folder is None:
        if is_folder_name(spec.checkpoint):
            raise SpecError(
                f"models.{name}.checkpoint: the folder {spec.checkpoint} does not exist on "
                f"{socket.gethostname()}; it must be one that every machine of the cluster shares, "
                "or a Hub repository"
            )
        folder = _download(name, spec, options)
    if spec.components:
        folder = folder_with_components(name, spec, folder, options.deadline_s)
    return spec.model_copy(update={"checkpoint": str(folder), "revision": None, "components": {}})


def _download(name: str, spec: ModelSpec, options: LoadOptions) -> Path:
    logger.info("fetching model=%s checkpoint=%s revision=%s", name, spec.checkpoint, spec.revision)

    def download() -> Path:
        index = Path(hf_hub_download(spec.checkpoint, "model_index.json", revision=spec.revision))
        folder = pipeline_class(json.loads(index.read_bytes())["_class_name"]).download(
            spec.checkpoint,
            revision=spec.revision,
            variant=spec.variant,
            use_safetensors=_use_safetensors(),
            trust_remote_code=False,
            # A component that is passed here is not downloaded.
            **dict.fromkeys(spec.components),
            **({} if options.with_checker else {"safety_checker": None}),
        )
        return Path(folder)

    try:
        return ask_hub(download, spec.checkpoint, options.deadline_s)
    except (*HUB_ERRORS, *LOADING_ERRORS) as error:
        raise SpecError(f"models.{name}: {spec.checkpoint} cannot be downloaded: {error}") from error


def load(name: str, spec: ModelSpec, options: LoadOptions, shared: SharedModules) -> Any:
    """The checkpoint's own pipeline; SpecError if it cannot be loaded."""
    spec = on_this_machine(name, spec, options)
    folder = Path(spec.checkpoint)
    dtype = _dtype(spec.dtype, options.device)
    logger.info("loading model=%s checkpoint=%s dtype=%s device=%s", name, folder, dtype, options.device)
    try:
        index = diffusers.DiffusionPipeline.load_config(folder)
        pipeline = pipeline_class(index["_class_name"]).from_pretrained(
            folder,
            **shared.known(folder, spec, dtype)
            | omitted_components(index)
            | _checker_arguments(index, options.with_checker),
            variant=spec.variant,
            dtype=dtype,
            use_safetensors=_use_safetensors(),
            trust_remote_code=False,
        )
        if has_safe_checker(index) and options.with_checker:
            checker = checker_with_safes_weights(
                folder, variant=spec.variant, dtype=dtype, use_safetensors=_use_safetensors()
            )
            pipeline.register_modules(safety_checker=checker)
        learn_tokens(pipeline, options.embeddings.get(name, {}), options.deadline_s)
        # If weights are missing, torch raises its error here.
        pipeline = pipeline.to(options.device)
    except LOADING_ERRORS as error:
        if is_out_of_memory(error) or is_fatal(error):
            raise  # The machine is at fault, not the checkpoint.
        raise SpecError(f"models.{name}: {folder} cannot be loaded: {_error_text(error)}") from error
    enable_clip_skip(getattr(pipeline, "text_encoder", None))
    if options.fuse_qkv:
        fuse_projections(pipeline.unet)
    for module in (pipeline.unet, pipeline.vae) if options.channels_last else ():
        module.to(memory_format=torch.channels_last)
    keep_in_float32(pipeline, options.vae_dtype)
    shared.add(folder, spec, dtype, pipeline.components)
    return pipeline


def _error_text(error: Exception) -> str:
    """The error's message, with the cause in front if the message only points to a log."""
    text = str(error)
    if isinstance(error, NotImplementedError):
        return f"weights are missing ({text})"
    if "ignore_mismatched_sizes" in text:
        return f"weights have other shapes than the configuration says ({text})"
    return text


def _use_safetensors() -> bool | None:
    """The argument of diffusers. With None, its default, pickles are used if there are no safetensors."""
    return None if allows_pickles() else True


def _checker_arguments(index: Mapping[str, Any], with_checker: bool) -> dict[str, Any]:
    """The pipeline's arguments about its checker.

    diffusers does not warn of a missing checker, since the plan has done so. With the checker switched off,
    none is loaded.
    """
    parameters = inspect.signature(pipeline_class(index["_class_name"])).parameters
    arguments: dict[str, Any] = {"requires_safety_checker": False}
    if not with_checker:
        arguments["safety_checker"] = None
    return {name: value for name, value in arguments.items() if name in parameters}


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    dtype: torch.dtype = getattr(torch, name)
    return dtype
