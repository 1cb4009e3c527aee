"""What a checkpoint is, read from its configuration files alone: neither torch nor weights are loaded.

A checkpoint is recognised by what it holds (`model_index.json`, the UNet's and the VAE's configuration),
never by its name.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from actors.checkpoints.checkpoint_folders import is_folder_name, local_folder, location_for_workers
from actors.storage.local_disk import LocalStorage
from schemas.errors import DarkroomError, SpecError
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import ModelCard
from schemas.systems.schedulers import scheduler_settings
from schemas.systems.system_table import FAMILIES, LEAST_SIZE_FACTOR

REFINER = "sdxl-refiner"
"""SDXL's refiner has the base's classes; it is told by being scored, and has no first text encoder."""

MAX_SIDE, MAX_VAE_BLOCKS, MAX_TRAIN_TIMESTEPS = 8192, 8, 100_000
"""More than any checkpoint has; a damaged or a hostile one could ask for all memory there is."""

MAX_CONFIG_BYTES = 16 << 20
"""Published ones have some kilobytes."""

CLIP_LAYERS = 12
"""Of a CLIPTextConfig that does not say, in transformers."""
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_XL = "StableDiffusionXL"
"""What its pipelines' names begin with; they count from the last layer but one."""

_ALWAYS_COMPONENTS = ("unet", "vae", "scheduler", "safety_checker", "feature_extractor")
_LIBRARY = re.compile(r"diffusers|transformers|(?:stable|latent)_diffusion\w*")
"""Of a component's class. The last are parts of diffusers, named after its pipelines' folders."""

ReadJson = Callable[[str], dict[str, Any]]


def read_card(name: str, model: ModelSpec) -> ModelCard:
    """Recognise a checkpoint; SpecError where it cannot be read or is of no family that darkroom runs."""
    try:
        folder = local_folder(model)
    except SpecError as error:
        raise SpecError(f"models.{name}.checkpoint: {error}") from error
    if folder is not None:
        read_json = _folder_reader(name, folder)
        read_json("model_index.json")  # Of a folder that is no checkpoint no more is looked at.
        _check_files(name, folder)
        return _card(name, model, read_json, _digest(folder), weight_bytes_on_disk(folder))
    if Path(model.checkpoint).expanduser().is_file():
        raise SpecError(
            f"models.{name}.checkpoint: {model.checkpoint} is a file; darkroom takes folders as diffusers' "
            "`save_pretrained` writes them: where you trust it, open it with `from_single_file` and save it"
        )
    if is_folder_name(model.checkpoint):
        raise SpecError(f"models.{name}.checkpoint: the folder {model.checkpoint} does not exist")
    revision, read_json = _hub_reader(name, model)
    return _card(name, model, read_json, revision, weight_bytes=0)


def _card(name: str, model: ModelSpec, read_json: ReadJson, revision: str, weight_bytes: int) -> ModelCard:
    index = read_json("model_index.json")
    pipeline = str(index.get("_class_name") or "checkpoint of no `_class_name`")
    if pipeline not in {known for known, _ in FAMILIES}:
        raise _unknown(name, model, f"a {pipeline}")
    _check_components(name, model, index)
    skips = [_max_clip_skip(name, part, read_json) for part in _TEXT_ENCODERS if _has(index, part)]
    unet = read_json("unet/config.json")
    vae = read_json("vae/config.json")
    settings = scheduler_settings(read_json("scheduler/scheduler_config.json"))
    try:
        factor = 2 ** (_within(len(vae["block_out_channels"]), MAX_VAE_BLOCKS) - 1)
        height, width = _default_size(unet["sample_size"], factor)
        family = _family(name, model, index, int(unet["in_channels"]))
        max_noise_level = int(index.get("max_noise_level") or 350)
        _within(int(settings.get("num_train_timesteps", 1000)), MAX_TRAIN_TIMESTEPS)
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"models.{name}.checkpoint: {model.checkpoint} is damaged: sample_size, in_channels or "
            "block_out_channels of its UNet or VAE, its max_noise_level or its scheduler's "
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
        weight_bytes=weight_bytes,
        has_safety_checker=all(_has(index, part) for part in ("safety_checker", "feature_extractor")),
        max_clip_skip=min([32, *(most - pipeline.startswith(_XL) for most in skips)]),
        vae_factor=factor,
    )


def _max_clip_skip(name: str, component: str, read_json: ReadJson) -> int:
    """A text encoder's layers: as many may be left out, for the first of its states is before them all."""
    found = read_json(f"{component}/config.json").get("num_hidden_layers", CLIP_LAYERS)
    if not isinstance(found, int) or found < 1:
        raise SpecError(f"models.{name}.checkpoint is damaged: its {component} has {found!r:.80} layers")
    return found


def _check_components(name: str, model: ModelSpec, index: Mapping[str, Any]) -> None:
    """SpecError where a component is of a class that neither diffusers nor transformers brings: it would be
    code of the checkpoint's own, or whatever else is installed."""
    place = f"models.{name}.checkpoint: {model.checkpoint}"
    for component, entry in index.items():
        if not isinstance(entry, list) and component not in _ALWAYS_COMPONENTS:
            continue
        if not _names_a_class(entry) or not component.isidentifier():
            raise SpecError(
                f"{place} is damaged: model_index.json has {entry!r:.80} for {component[:80]!r} where the "
                "library and the class of a component should be"
            )
        if entry and entry[0] is not None and not _LIBRARY.fullmatch(entry[0]):
            raise SpecError(
                f"{place} asks for {entry[0]}.{entry[1]} as its {component}; classes of diffusers and "
                "transformers are loaded and no others, for they could be any code"
            )


def _names_a_class(entry: Any) -> bool:
    """Whether it is a library and a class, or says that there is no component."""
    if entry is None or entry == [None, None]:
        return True
    is_pair = isinstance(entry, list) and len(entry) == 2
    return is_pair and all(isinstance(word, str) and word.isidentifier() for word in entry)


def _within(number: int, most: int) -> int:
    if not 0 < number <= most:
        raise ValueError(f"{number} is not from 1 to {most}")
    return number


def _has(index: Mapping[str, Any], component: str) -> bool:
    return (index.get(component) or [None, None])[1] is not None


def _family(name: str, model: ModelSpec, index: Mapping[str, Any], channels: int) -> str:
    pipeline = str(index.get("_class_name"))
    family = FAMILIES.get((pipeline, channels))
    if family is None:
        raise _unknown(name, model, f"a {pipeline} whose UNet takes {channels} channels")
    return REFINER if family == "sdxl" and index.get("requires_aesthetics_score") else family


def _unknown(name: str, model: ModelSpec, kind: str) -> SpecError:
    known = ", ".join(f"{known} ({wide} channels)" for known, wide in FAMILIES)
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
    """SpecError for what is neither a file nor a folder: diffusers would wait for a pipe for ever."""
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():
            continue
        what = (
            "neither a file nor a folder"
            if path.exists()
            else "a link to what is not there; copy folders of the Hub's cache with `cp --dereference`"
        )
        raise SpecError(f"models.{name}.checkpoint: {path} is {what}")


def _digest(folder: Path) -> str:
    """What the folder holds: each file's name, size, and the two ends of its content."""
    digest = hashlib.sha256()
    for stored in LocalStorage(temp_dir="").list(str(folder)):
        name = Path(stored.uri).relative_to(folder)
        digest.update(f"{name} {stored.etag}\n".encode())
    return digest.hexdigest()[:16]


def weight_bytes_on_disk(folder: Path) -> int:
    """Size of a folder's weight files that are safetensors."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _hub_reader(name: str, model: ModelSpec) -> tuple[str, ReadJson]:
    def fetch(file: str) -> Path:
        try:
            return Path(hf_hub_download(model.checkpoint, file, revision=model.revision))
        except EntryNotFoundError as error:
            raise SpecError(
                f"models.{name}.checkpoint: {model.checkpoint} is neither a folder here nor a diffusers "
                f"repository that can be reached: it has no {file} ({_first_line(error)})"
            ) from error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise SpecError(
                f"models.{name}.checkpoint: {model.checkpoint} is neither a folder here nor a Hub repository "
                f"that can be reached ({_first_line(error)})"
            ) from error

    def read_json(file: str) -> dict[str, Any]:
        return dict(json.loads(fetch(file).read_bytes()))

    # A file in the Hub's cache lies under snapshots/<commit>/: that is the revision, whatever it was called.
    return fetch("model_index.json").parent.name, read_json


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
