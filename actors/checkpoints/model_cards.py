"""What a checkpoint is, read from its configuration files alone, without torch and without its weights.

A checkpoint is recognised by its content (`model_index.json`, the configurations of its UNet and VAE), never
by its name.
"""

import hashlib
import json
import re
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError, RevisionNotFoundError

from actors.checkpoints.block_shapes import num_decoder_shapes, num_unet_shapes
from actors.checkpoints.checkpoint_folders import is_folder_name, local_folder, location_for_workers
from actors.checkpoints.component_files import loaded_bytes
from actors.checkpoints.hub import HUB_ERRORS, first_line, trouble_of
from actors.storage.file_hashes import sha256_of
from actors.storage.local_disk import LocalStorage
from schemas.errors import DarkroomError, SpecError
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import ModelCard
from schemas.systems.schedulers import scheduler_settings
from schemas.systems.system_table import FAMILIES, LEAST_SIZE_FACTOR

REFINER = "sdxl-refiner"
"""The family of SDXL's refiner. It has the base's classes, but requires an aesthetics score and has no first
text encoder."""

MAX_SIDE, MAX_VAE_BLOCKS, MAX_TRAIN_TIMESTEPS = 8192, 8, 100_000
"""Limits that no real checkpoint reaches. A damaged or hostile one could otherwise ask for all memory."""

HASHES_AT_ONCE = 4
"""A checkpoint's files that are hashed at the same time."""

MAX_CONFIG_BYTES = 16 << 20
"""The largest configuration file that is read. Published ones have a few kilobytes."""

CLIP_LAYERS = 12
"""The number of layers in transformers of a CLIPTextConfig that does not give one."""
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_XL = "StableDiffusionXL"
"""How the names of SDXL's pipelines begin. They count clip_skip from the last layer but one."""

_ALWAYS_COMPONENTS = ("unet", "vae", "scheduler", "safety_checker", "feature_extractor")
_LIBRARY = re.compile(r"diffusers|transformers|(?:stable|latent)_diffusion\w*")
"""The libraries that a component's class may come from. The last are parts of diffusers, named after the
folders of its pipelines."""

ReadJson = Callable[[str], dict[str, Any]]
"""A function that returns the content of one of a checkpoint's JSON files, by its name."""


def read_card(name: str, model: ModelSpec) -> ModelCard:
    """The card of a checkpoint; SpecError where it cannot be read or darkroom does not run its family.

    `name`: the model's name in the spec.
    """
    try:
        folder = local_folder(model)
    except SpecError as error:
        raise SpecError(f"models.{name}.checkpoint: {error}") from error
    if folder is not None:
        read_json = _folder_reader(name, folder)
        read_json("model_index.json")  # A folder that is not a checkpoint is not searched.
        _check_files(name, folder)
        card = _card(name, model, read_json, revision="")
        hashes = _hashes(name, folder)  # last, because it can take a while
        weight_bytes = loaded_bytes(folder, model.variant)
        return replace(card, revision=_digest(hashes), files=hashes, weight_bytes=weight_bytes)
    if Path(model.checkpoint).expanduser().is_file():
        raise SpecError(
            f"models.{name}.checkpoint: {model.checkpoint} is a file; darkroom reads folders as diffusers' "
            "`save_pretrained` writes them. If you trust it, open it with `from_single_file` and save it"
        )
    if is_folder_name(model.checkpoint):
        raise SpecError(f"models.{name}.checkpoint: the folder {model.checkpoint} does not exist")
    revision, read_json = _hub_reader(name, model)
    return _card(name, model, read_json, revision)


def _card(name: str, model: ModelSpec, read_json: ReadJson, revision: str) -> ModelCard:
    index = read_json("model_index.json")
    pipeline = str(index.get("_class_name") or "checkpoint without `_class_name`")
    if pipeline not in {known for known, _ in FAMILIES}:
        raise _unknown_family(name, model, f"a {pipeline}")
    _check_components(name, model, index)
    num_layers = [_num_layers(name, part, read_json) for part in _TEXT_ENCODERS if _has(index, part)]
    unet = read_json("unet/config.json")
    vae = read_json("vae/config.json")
    settings = scheduler_settings(read_json("scheduler/scheduler_config.json"))
    try:
        factor = 2 ** (_within(len(vae["block_out_channels"]), MAX_VAE_BLOCKS) - 1)
        height, width = _default_size(unet["sample_size"], factor)
        family = _family(name, model, index, int(unet["in_channels"]))
        max_noise_level = int(index.get("max_noise_level") or 350)
        unet_shapes, decoder_shapes = num_unet_shapes(unet), num_decoder_shapes(vae)
        _within(int(settings.get("num_train_timesteps", 1000)), MAX_TRAIN_TIMESTEPS)
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"models.{name}.checkpoint: {model.checkpoint} is damaged: sample_size, in_channels, blocks or "
            "layers_per_block of its UNet or VAE, its max_noise_level or its scheduler's "
            f"num_train_timesteps is missing or wrong ({error!r})"
        ) from error
    return ModelCard(
        checkpoint=location_for_workers(model),
        revision=revision,
        family=family,
        pipeline=pipeline,
        scheduler=str((index.get("scheduler") or ["", ""])[1]),
        scheduler_settings=settings,
        max_noise_level=max_noise_level,
        size_factor=max(factor, LEAST_SIZE_FACTOR),
        height=height,
        width=width,
        weight_bytes=0,
        has_safety_checker=all(_has(index, part) for part in ("safety_checker", "feature_extractor")),
        max_clip_skip=min([32, *(num - pipeline.startswith(_XL) for num in num_layers)]),
        vae_factor=factor,
        unet_shapes=unet_shapes,
        decoder_shapes=decoder_shapes,
    )


def _num_layers(name: str, component: str, read_json: ReadJson) -> int:
    """A text encoder's number of layers. clip_skip may skip all: the first state is before every layer."""
    num_layers = read_json(f"{component}/config.json").get("num_hidden_layers", CLIP_LAYERS)
    if not isinstance(num_layers, int) or num_layers < 1:
        raise SpecError(f"models.{name}.checkpoint is damaged: its {component} has {num_layers!r:.80} layers")
    return num_layers


def _check_components(name: str, model: ModelSpec, index: Mapping[str, Any]) -> None:
    """Raise SpecError if a component's class is not one of diffusers or transformers.

    Such a class could be the checkpoint's own code, or of any other installed library.
    """
    prefix = f"models.{name}.checkpoint: {model.checkpoint}"
    for component, entry in index.items():
        if not isinstance(entry, list) and component not in _ALWAYS_COMPONENTS:
            continue
        if not _names_a_class(entry) or not component.isidentifier():
            raise SpecError(
                f"{prefix} is damaged: model_index.json has {entry!r:.80} for {component[:80]!r} where the "
                "library and the class of a component should be"
            )
        if entry and entry[0] is not None and not _LIBRARY.fullmatch(entry[0]):
            raise SpecError(
                f"{prefix} asks for {entry[0]}.{entry[1]} as its {component}; only classes of diffusers and "
                "transformers are loaded, because others could be any code"
            )


def _names_a_class(entry: Any) -> bool:
    """Whether an entry of model_index.json has a library and a class, or says that there is no component."""
    if entry is None or entry == [None, None]:
        return True
    is_pair = isinstance(entry, list) and len(entry) == 2
    return is_pair and all(isinstance(part, str) and part.isidentifier() for part in entry)


def _within(number: int, highest: int) -> int:
    """The number, if it is from 1 to the highest; otherwise ValueError."""
    if not 0 < number <= highest:
        raise ValueError(f"{number} is not from 1 to {highest}")
    return number


def _has(index: Mapping[str, Any], component: str) -> bool:
    return (index.get(component) or [None, None])[1] is not None


def _family(name: str, model: ModelSpec, index: Mapping[str, Any], channels: int) -> str:
    pipeline = str(index.get("_class_name"))
    family = FAMILIES.get((pipeline, channels))
    if family is None:
        raise _unknown_family(name, model, f"a {pipeline} whose UNet takes {channels} channels")
    return REFINER if family == "sdxl" and index.get("requires_aesthetics_score") else family


def _unknown_family(name: str, model: ModelSpec, kind: str) -> SpecError:
    known = ", ".join(f"{pipeline} ({channels} channels)" for pipeline, channels in FAMILIES)
    return SpecError(f"models.{name}.checkpoint: {model.checkpoint} is {kind}; darkroom runs {known}")


def _default_size(sample_size: int | list[int], factor: int) -> tuple[int, int]:
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return _within(int(height) * factor, MAX_SIDE), _within(int(width) * factor, MAX_SIDE)


def _folder_reader(name: str, folder: Path) -> ReadJson:
    storage = LocalStorage(temp_dir="")

    def read_json(file: str) -> dict[str, Any]:
        try:
            return dict(json.loads(storage.read(str(folder / file), MAX_CONFIG_BYTES)))
        except (DarkroomError, OSError, RecursionError, TypeError, ValueError) as error:
            raise SpecError(
                f"models.{name}.checkpoint: {folder} has no readable {file}; "
                "it must be a diffusers folder as `save_pretrained` writes it"
            ) from error

    return read_json


def _check_files(name: str, folder: Path) -> None:
    """Raise SpecError if anything in it is not a file or folder: diffusers would wait for a pipe for ever."""
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():
            continue
        kind = (
            "neither a file nor a folder"
            if path.exists()
            else "a broken link; copy folders of the Hub's cache with `cp --dereference`"
        )
        raise SpecError(f"models.{name}.checkpoint: {path} is {kind}")


def _hashes(name: str, folder: Path) -> dict[str, str]:
    """By name, the SHA-256 of each file that the folder's pipeline can be loaded from.

    Other files do not count: a README, or the checkpoints that a trainer saved on its way.
    """
    index = json.loads((folder / "model_index.json").read_bytes())
    components = [part for part, entry in index.items() if isinstance(entry, list)]
    paths = [folder / "model_index.json"]
    paths += [path for part in components for path in (folder / part).rglob("*") if path.is_file()]
    # A name need not be UTF-8, and the job's record is.
    names = [path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode() for path in paths]
    try:
        with ThreadPoolExecutor(HASHES_AT_ONCE) as threads:
            hashes = [*threads.map(sha256_of, map(str, paths))]
    except OSError as error:
        raise SpecError(
            f"models.{name}.checkpoint: {error.filename} cannot be read ({error.strerror}); check its "
            "permissions and the disk"
        ) from error
    return dict(sorted(zip(names, hashes, strict=True)))


def refuse_other_files(name: str, card: ModelCard) -> None:
    """Raise SpecError if the checkpoint's folder on this machine has other files than the card's.

    A folder of the same path on another machine can be another copy, which makes other images. Nothing is
    compared of a checkpoint on the Hub, whose commit is fixed, or of a demo, which each machine builds.
    """
    if not card.files or not is_folder_name(card.checkpoint):
        return
    folder, host = Path(card.checkpoint), socket.gethostname()
    try:
        present = _hashes(name, folder)
    except (OSError, ValueError) as error:
        raise SpecError(
            f"models.{name}.checkpoint: {folder} cannot be read on {host} ({error}); every machine needs a "
            "copy of the driver's folder, or a folder that they share"
        ) from error
    for file in sorted(card.files.keys() | present.keys()):
        if card.files.get(file) != present.get(file):
            difference = "is missing" if file not in present else "is not the driver's"
            raise SpecError(
                f"models.{name}.checkpoint: {folder / file} on {host} {difference}: images of this machine "
                "would differ; copy the driver's folder to every machine, or use a folder that they share"
            )


def _digest(hashes: Mapping[str, str]) -> str:
    """The revision of a folder with these files: a hash of their names and contents."""
    lines = "".join(f"{name} {digest}\n" for name, digest in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _hub_reader(name: str, model: ModelSpec) -> tuple[str, ReadJson]:
    """(revision, function that reads a JSON file) of a repository on the Hub."""

    def fetch(file: str) -> Path:
        try:
            return Path(hf_hub_download(model.checkpoint, file, revision=model.revision))
        except RemoteEntryNotFoundError as error:
            raise SpecError(
                f"models.{name}.checkpoint: {model.checkpoint} is a repository of the Hub without {file}, so "
                "it is no checkpoint in diffusers' format"
            ) from error
        except RevisionNotFoundError as error:
            raise SpecError(
                f"models.{name}.revision: {model.checkpoint} has no branch, tag or commit "
                f"{model.revision} on the Hub"
            ) from error
        except (*HUB_ERRORS, HFValidationError) as error:
            if trouble := trouble_of(error):
                raise SpecError(
                    f"models.{name}.checkpoint: {model.checkpoint} is not a folder here, and the Hub does "
                    f"not answer: {trouble}. Check the network and HF_ENDPOINT, and try again"
                ) from error
            raise SpecError(
                f"models.{name}.checkpoint: {model.checkpoint} is neither a folder here nor a Hub repository "
                f"that can be reached ({first_line(error)})"
            ) from error

    def read_json(file: str) -> dict[str, Any]:
        return dict(json.loads(fetch(file).read_bytes()))

    # A file in the Hub's cache is in snapshots/<commit>/: the commit is the revision.
    return fetch("model_index.json").parent.name, read_json
