"""Folders that a checkpoint is loaded from, where the spec names a single file or single components."""

import json
import logging
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download

from actors.checkpoints.adapters.ip_adapter_files import IMAGE_ENCODER
from actors.checkpoints.component_files import HubFile, LocalFile
from actors.checkpoints.composed_folders import composed_folder
from actors.checkpoints.hub import HUB_ERRORS, ask_hub
from actors.checkpoints.named_components import (
    NamedComponent,
    composed_index,
    files_of_component,
    needed_files,
    read_component,
    read_components,
)
from actors.checkpoints.single_files.derived_folders import kept_folder, write_configuration
from actors.checkpoints.single_files.single_file import SingleFile, hub_parts, is_on_hub, read_single_file
from actors.engine.pipelines.pipeline_builder import pipeline_class
from actors.storage.stores import open_storage
from actors.storage.uris import S3_SCHEME
from models.whole_folder import all_or_nothing
from schemas.errors import SpecError
from schemas.job import component_spec
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import IpAdapterCard
from schemas.wording.printable import in_one_line

logger = logging.getLogger(__name__)

COPIED_AT_ONCE = 16 << 20
"""The bytes of an object that are read at a time."""


def single_file_folder(name: str, spec: ModelSpec, deadline_s: float) -> Path:
    """The folder that a single file was converted to, or is now: once a machine for each content.

    SpecError if the file is not there, is not the one that was planned, or cannot be converted.
    """
    key = f"models.{name}.checkpoint"
    single = ask_hub(lambda: read_single_file(key, spec), spec.checkpoint, deadline_s)
    if (
        spec.revision is not None
        and single.location.startswith(S3_SCHEME)
        and spec.revision != single.revision
    ):
        raise SpecError(f"{key}: {spec.checkpoint} has changed since the job was planned")
    folder = kept_folder(single.content)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Several workers of a machine would need the memory and the disk for one conversion each.
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                _convert(key, single, folder, deadline_s)
    return folder


def _convert(key: str, single: SingleFile, folder: Path, deadline_s: float) -> None:
    """Write the file's pipeline to the folder, all or nothing. Only the file itself is downloaded."""
    logger.info(
        "converting checkpoint=%s kind=%s folder=%s", single.location, single.recognised.kind.name, folder
    )
    recognised = single.recognised
    index = recognised.configs["model_index.json"]
    with all_or_nothing(folder) as unfinished, _file_here(key, single, unfinished.parent, deadline_s) as path:
        configuration = unfinished.with_name("configuration")
        write_configuration(configuration, recognised)
        lacking = {part for part, each in index.items() if isinstance(each, list) and each[1]}
        lacking -= {*recognised.size_bytes, *recognised.tokenizers, "scheduler"}
        try:
            pipeline = pipeline_class(index["_class_name"]).from_single_file(
                str(path),
                config=str(configuration),
                dtype=getattr(torch, recognised.dtype),
                local_files_only=True,
                **dict.fromkeys(lacking),
            )
            pipeline.save_pretrained(unfinished, safe_serialization=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise SpecError(f"{key}: {single.location} cannot be converted: {in_one_line(error)}") from error
        # diffusers 0.42.1 saves defaults too, and a scheduler that is built from this one would have them.
        scheduler = "scheduler/scheduler_config.json"
        shutil.copy(configuration / scheduler, unfinished / scheduler)
        # Components that the file lacks are named by the spec, and take the places of these entries.
        saved = json.loads((unfinished / "model_index.json").read_bytes())
        complete = saved | {part: index[part] for part in lacking}
        (unfinished / "model_index.json").write_text(json.dumps(complete, indent=2))


@contextmanager
def _file_here(key: str, single: SingleFile, scratch: Path, deadline_s: float) -> Iterator[Path]:
    """The file on this machine. From S3 it is copied to the folder `scratch`, and only for the block."""
    if single.location.startswith(S3_SCHEME):
        path = scratch / "downloaded.safetensors"
        storage = open_storage(single.location, deadline_s=deadline_s)
        with storage.open(single.location) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy, COPIED_AT_ONCE)
        yield path
    elif is_on_hub(single.location):
        repository, name = hub_parts(single.location)
        yield Path(_download(key, repository, name, single.revision, deadline_s))
    else:
        yield Path(single.location)


def _download(key: str, repository: str, name: str, commit: str, deadline_s: float) -> str:
    try:
        return ask_hub(lambda: hf_hub_download(repository, name, revision=commit), repository, deadline_s)
    except HUB_ERRORS as error:
        raise SpecError(f"{key}: {repository}/{name} cannot be downloaded: {error}") from error


def folder_with_components(name: str, spec: ModelSpec, checkpoint: Path, deadline_s: float) -> Path:
    """A folder with the checkpoint's components and, in their places, those that the spec names.

    Their files are downloaded now where they are on the Hub.
    """
    components = ask_hub(lambda: read_components(name, spec), f"models.{name}.components", deadline_s)
    files: dict[str, LocalFile] = {}
    for component in components.values():
        files |= _local_files(component, spec.variant, deadline_s)
    index = json.loads((checkpoint / "model_index.json").read_bytes())
    return composed_folder(checkpoint, files, composed_index(name, index, components))


def encoder_folder(name: str, card: IpAdapterCard, deadline_s: float) -> Path:
    """The folder on this machine of an IP-Adapter's image encoder, which is downloaded if need be.

    SpecError if it is missing, or has other files than the driver saw.
    """
    key, spec = f"the IP-Adapter `{name}`: image_encoder", component_spec(card.image_encoder)
    component = ask_hub(lambda: read_component(key, IMAGE_ENCODER, spec), spec.path, deadline_s)
    if component.source.revision != card.image_encoder.revision:
        raise SpecError(
            f"{key}: {spec.path} on {socket.gethostname()} does not have the content that the driver saw, so "
            "images would differ; put the files back, or copy the driver's to every machine"
        )
    files = _local_files(component, None, deadline_s)
    return files[f"{IMAGE_ENCODER}/config.json"].path.parent


def _local_files(component: NamedComponent, variant: str | None, deadline_s: float) -> dict[str, LocalFile]:
    """The files that a component is loaded from, on this machine, by their names in the checkpoint."""
    card, part = component.source, component.name
    files = ask_hub(lambda: files_of_component(part, component_spec(card), variant), card.path, deadline_s)
    local = {}
    for name in needed_files(part, files, variant):
        file = files[name]
        if isinstance(file, HubFile):
            path = _download(component.key, card.path, file.name, file.commit, deadline_s)
            local[name] = LocalFile(Path(path))
        elif isinstance(file, LocalFile):
            local[name] = file
    return local
