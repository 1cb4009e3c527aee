"""What a checkpoint is, read from its configuration files alone, without torch and without its weights.

A checkpoint is recognised by its content (`model_index.json`, the configurations of its UNet and VAE), never
by its name.
"""

import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.checkpoints.block_shapes import num_decoder_shapes, num_unet_shapes
from actors.checkpoints.checkpoint_folders import is_folder_name, local_folder, location_for_workers
from actors.checkpoints.component_files import TEXT_ENCODERS, files_in, loaded_bytes
from actors.checkpoints.model_files import files_of
from actors.checkpoints.named_components import (
    NamedComponent,
    check_fit,
    composed_index,
    read_components,
)
from actors.checkpoints.single_files.derived_folders import derived_files
from actors.checkpoints.single_files.single_file import is_single_file, read_single_file, refuse_pickle
from actors.checkpoints.sources import (
    ReadJson,
    check_files,
    digest_of,
    files_directly_in,
    folder_reader,
    hashes_of,
    hub_reader,
    pipeline_files,
)
from models.clip_tokenizer import NUM_TOKENS
from schemas.errors import SpecError
from schemas.job import pinned
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import UPCASTING_PIPELINES, ModelCard
from schemas.systems.schedulers import scheduler_settings
from schemas.systems.system_table import FAMILIES, LEAST_SIZE_FACTOR

REFINER = "sdxl-refiner"
"""The family of SDXL's refiner. It has the base's classes, but requires an aesthetics score and has no first
text encoder."""

MAX_SIDE, MAX_VAE_BLOCKS, MAX_TRAIN_TIMESTEPS = 8192, 8, 100_000
"""Limits that no real checkpoint reaches. A damaged or hostile one could otherwise ask for all memory."""

CLIP_LAYERS = 12
"""The number of layers in transformers of a CLIPTextConfig that does not give one."""
_XL = "StableDiffusionXL"
"""How the names of SDXL's pipelines begin. They count clip_skip from the last layer but one."""

_ALWAYS_COMPONENTS = ("unet", "vae", "scheduler", "safety_checker", "feature_extractor")
_LIBRARY = re.compile(r"diffusers|transformers|(?:stable|latent)_diffusion\w*")
"""The libraries that a component's class may come from. The last are parts of diffusers, named after the
folders of its pipelines."""


def read_card(name: str, model: ModelSpec) -> ModelCard:
    """The card of a checkpoint; SpecError where it cannot be read or darkroom does not run its family.

    `name`: the model's name in the spec.
    """
    key = f"models.{name}.checkpoint"
    refuse_pickle(key, model.checkpoint)
    components = read_components(name, model)
    try:
        folder = local_folder(model)
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from error
    if folder is not None:
        card = _card_of_folder(name, model, folder, components)
    elif is_single_file(model.checkpoint):
        card = _card_of_single_file(name, model, components)
    else:
        card = _card_of_repository(name, model, components)
    if components and card.weight_bytes:
        weight_bytes = loaded_bytes(files_of(pinned(model, card)), model.variant)
        return replace(card, weight_bytes=weight_bytes)
    return card


Components = Mapping[str, NamedComponent]


def _card_of_folder(name: str, model: ModelSpec, folder: Path, components: Components) -> ModelCard:
    key = f"models.{name}.checkpoint"
    read_json = folder_reader(key, folder)
    read_json("model_index.json")  # A folder that is not a checkpoint is not searched.
    check_files(key, folder)
    card = _card(name, model, read_json, "", components)
    hashes = hashes_of(key, folder, pipeline_files(folder, components))  # last, because it can take a while
    weight_bytes = loaded_bytes(files_in(folder), model.variant)
    return replace(card, revision=digest_of(hashes), files=hashes, weight_bytes=weight_bytes)


def _card_of_single_file(name: str, model: ModelSpec, components: Components) -> ModelCard:
    if model.variant:
        raise SpecError(
            f"models.{name}.variant: {model.checkpoint} is a single file and has no variants; leave "
            "`variant` out, and name the file itself"
        )
    single = read_single_file(f"models.{name}.checkpoint", model)
    files = derived_files(single)
    for part, entry in single.recognised.configs["model_index.json"].items():
        is_lacking = (
            isinstance(entry, list) and entry[1] and not any(file.startswith(f"{part}/") for file in files)
        )
        if is_lacking and part not in components:
            raise SpecError(
                f"models.{name}.checkpoint: {model.checkpoint} has no {part}; name one with "
                f"models.{name}.components: {{{part}: FOLDER_OR_REPOSITORY}}"
            )
    _check_vocabulary(name, model, single.recognised.configs, components)

    def read_json(file: str) -> dict[str, Any]:
        return dict(json.loads(files[file].read())) if file in files else {}

    card = _card(name, model, read_json, single.revision, components)
    weight_bytes = loaded_bytes(files, model.variant)
    return replace(card, checkpoint=single.location, files=single.hashes, weight_bytes=weight_bytes)


def _check_vocabulary(
    name: str, model: ModelSpec, configs: Mapping[str, Mapping[str, Any]], components: Components
) -> None:
    """Raise SpecError if the tokenizer that comes with darkroom knows tokens that a text encoder does not."""
    for part in TEXT_ENCODERS:
        num_tokens = configs.get(f"{part}/config.json", {}).get("vocab_size", NUM_TOKENS)
        tokenizer = part.replace("text_encoder", "tokenizer")
        if num_tokens < NUM_TOKENS and not {part, tokenizer} & {*components}:
            raise SpecError(
                f"models.{name}.checkpoint: {model.checkpoint} has a {part} that knows {num_tokens:,} "
                f"tokens, and would be given CLIP's tokenizer of {NUM_TOKENS:,}; name its own with "
                f"models.{name}.components: {{{tokenizer}: FOLDER_OR_REPOSITORY}}"
            )


def _card_of_repository(name: str, model: ModelSpec, components: Components) -> ModelCard:
    key = f"models.{name}.checkpoint"
    if Path(model.checkpoint).expanduser().is_file():
        raise SpecError(
            f"{key}: {model.checkpoint} is a file; darkroom reads folders as diffusers' `save_pretrained` "
            "writes them, and single files that end in .safetensors"
        )
    if is_folder_name(model.checkpoint):
        raise SpecError(f"{key}: the folder {model.checkpoint} does not exist")
    revision, read_json = hub_reader(key, model.checkpoint, model.revision, "model_index.json")
    return _card(name, model, read_json, revision, components)


def _card(
    name: str, model: ModelSpec, own_json: ReadJson, revision: str, components: Components
) -> ModelCard:
    """The card that the configurations give; `own_json` reads those of the checkpoint itself."""
    index = composed_index(name, own_json("model_index.json"), components)
    read_json = _with_components(own_json, components)
    pipeline = str(index.get("_class_name") or "checkpoint without `_class_name`")
    if pipeline not in {known for known, _ in FAMILIES}:
        raise _unknown_family(name, model, f"a {pipeline}")
    _check_components(name, model, index)
    num_layers = [_num_layers(name, part, read_json) for part in TEXT_ENCODERS if _has(index, part)]
    unet = read_json("unet/config.json")
    vae = read_json("vae/config.json")
    settings = scheduler_settings(read_json("scheduler/scheduler_config.json"))
    check_fit(name, components, own_json)
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
        # AutoencoderKL's own default is true (diffusers 0.42.1).
        upcasts_vae=pipeline.startswith(UPCASTING_PIPELINES) and bool(vae.get("force_upcast", True)),
        components={part: component.source for part, component in components.items()},
        unet_shapes=unet_shapes,
        decoder_shapes=decoder_shapes,
    )


def _with_components(own_json: ReadJson, components: Components) -> ReadJson:
    """A function that reads the configurations of named components, and the others as `own_json` does."""

    def read_json(file: str) -> dict[str, Any]:
        component = components.get(file.partition("/")[0])
        return own_json(file) if component is None else dict(component.config)

    return read_json


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


def refuse_other_files(name: str, card: ModelCard) -> None:
    """Raise SpecError if the checkpoint or a component on this machine has other files than the card's.

    A folder of the same path on another machine can be another copy, which makes other images. Nothing is
    compared of what is on the Hub, whose commit is fixed, or of a demo, which each machine builds.
    """
    key, path = f"models.{name}.checkpoint", Path(card.checkpoint)
    if card.files and is_single_file(card.checkpoint):
        _refuse_others(key, path.parent, card.files, lambda: [path])
    elif card.files and is_folder_name(card.checkpoint):
        _refuse_others(key, path, card.files, lambda: pipeline_files(path, card.components))
    for part, component in card.components.items():
        if component.files:
            below = Path(component.path) / component.subfolder
            _refuse_others(
                f"models.{name}.components.{part}", below, component.files, partial(files_directly_in, below)
            )


def _refuse_others(
    key: str, folder: Path, files: Mapping[str, str], list_files: Callable[[], list[Path]]
) -> None:
    """Raise SpecError if the files that `list_files` returns now do not have these hashes."""
    host = socket.gethostname()
    try:
        present = hashes_of(key, folder, list_files())
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{key}: {folder} cannot be read on {host} ({error}); every machine needs a "
            "copy of the driver's folder, or a folder that they share"
        ) from error
    for file in sorted(files.keys() | present.keys()):
        if files.get(file) != present.get(file):
            difference = "is missing" if file not in present else "is not the driver's"
            raise SpecError(
                f"{key}: {folder / file} on {host} {difference}: images of this machine "
                "would differ; copy the driver's folder to every machine, or use a folder that they share"
            )
