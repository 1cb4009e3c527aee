"""The ControlNets of a model: found, and compared with its UNet before anything is loaded."""

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError

from actors.checkpoints.adapters.weights_headers import check_headers
from actors.checkpoints.checkpoint_folders import adapter_for_workers, adapter_path, is_folder_name
from actors.checkpoints.component_files import (
    SAFE,
    CheckpointFile,
    ComponentFiles,
    Files,
    LocalFile,
    files_on_hub,
    weights_of,
)
from actors.checkpoints.hub import HUB_ERRORS, ask_hub
from actors.checkpoints.model_files import files_of
from actors.checkpoints.single_files.single_file import refuse_single_file
from actors.checkpoints.sources import (
    ReadJson,
    check_files,
    digest_of,
    files_directly_in,
    folder_reader,
    hashes_of,
    hub_reader,
)
from schemas.errors import SpecError
from schemas.job import net_spec, pinned
from schemas.spec.adapter_spec import ControlNetSpec
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import ControlNetCard, ModelCard
from schemas.systems.system_table import SYSTEMS

CONFIG = "config.json"
UNION = "ControlNetUnionModel"
CLASSES = ("ControlNetModel", UNION)
"""The classes of diffusers that are loaded."""
_NET = "controlnet"
"""The folder under which a ControlNet's files are listed."""

FIT: Mapping[str, Any] = {
    "cross_attention_dim": 1280,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "addition_embed_type": None,
    "projection_class_embeddings_input_dim": None,
    "class_embed_type": None,
}
"""The keys in which a ControlNet must be equal to the UNet, with the defaults of both classes in diffusers
0.42.1."""
_MADE_FOR = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "XL"}
"""The kind of checkpoint, by the width of the encoded prompt."""
_EMBEDDING = [16, 32, 96, 256]
"""The default of `conditioning_embedding_out_channels`: each but the first halves control images."""


def find_control_nets(name: str, model: ModelSpec, card: ModelCard) -> dict[str, ControlNetCard]:
    """The cards of a model's ControlNets by name; SpecError for the first that the model cannot use.

    `name`: the model's name in the spec. Only configurations and headers are read, and what a hash needs.
    """
    if not model.controlnets:
        return {}
    key = f"models.{name}.controlnets"
    systems = [system for system in SYSTEMS if system.family == card.family]
    has_unions = any(system.union_pipeline for system in systems)
    if not any(system.control_pipeline for system in systems):
        raise SpecError(
            f"{key}: diffusers has no pipeline with ControlNets for a checkpoint of {card.family}"
        )
    unet: Mapping[str, Any] | None = None
    with suppress(*HUB_ERRORS):
        unet = json.loads(files_of(pinned(model, card))["unet/config.json"].read())
    cards = {}
    for net, spec in model.controlnets.items():
        cards[net], config = _read(f"{key}.{net}", spec)
        if cards[net].num_modes and not has_unions:
            raise SpecError(f"{key}.{net}: {spec.path} is a union, which diffusers has for XL alone")
        if misfit := _misfit(config, unet, card):
            raise SpecError(f"{key}.{net}: {spec.path} cannot be used with {model.checkpoint}: {misfit}")
    return cards


def _read(key: str, spec: ControlNetSpec) -> tuple[ControlNetCard, Mapping[str, Any]]:
    """(card, configuration) of a ControlNet."""
    try:
        path = adapter_path(spec.path)
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from error
    folder = local_net(spec)
    refuse_single_file(key, spec.path, CLASSES[0])
    if folder is None:
        if is_folder_name(spec.path):
            raise SpecError(f"{key}: the folder {spec.path} does not exist")
        return _on_hub(key, spec)
    config = _checked_config(key, spec, folder_reader(key, folder), CONFIG)
    check_files(key, folder)
    files = {f"{_NET}/{each.name}": LocalFile(each) for each in files_directly_in(folder)}
    weights = _weights(key, spec, files)
    hashes = hashes_of(key, folder, [folder / CONFIG, *(each.path for each in weights)])
    return _card(spec, adapter_for_workers(spec.path, path), digest_of(hashes), weights, config), config


def local_net(spec: ControlNetSpec) -> Path | None:
    """The folder on this machine with the ControlNet's files; None for a repository on the Hub."""
    folder = adapter_path(spec.path)
    return folder / (spec.subfolder or "") if folder.is_dir() else None


def _checked_config(key: str, spec: ControlNetSpec, read_json: ReadJson, file: str) -> Mapping[str, Any]:
    config = read_json(file)
    kind = config.get("_class_name")
    if kind not in CLASSES:
        raise SpecError(f"{key}: {spec.path} is a {kind!s:.80}, not a {' or '.join(CLASSES)}")
    return config


def _on_hub(key: str, spec: ControlNetSpec) -> tuple[ControlNetCard, Mapping[str, Any]]:
    below = f"{spec.subfolder}/" if spec.subfolder else ""
    commit, read_json = hub_reader(key, spec.path, spec.revision, f"{below}{CONFIG}")
    config = _checked_config(key, spec, read_json, f"{below}{CONFIG}")
    try:
        listed = files_on_hub(spec.path, commit)
        files = {
            f"{_NET}/{each.removeprefix(below)}": listed[each] for each in listed if each.startswith(below)
        }
    except (*HUB_ERRORS, HFValidationError):
        # The Hub cannot be reached, and the files are perhaps in this machine's cache.
        folder = Path(hf_hub_download(spec.path, f"{below}{CONFIG}", revision=commit)).parent
        files = {f"{_NET}/{each.name}": LocalFile(each) for each in files_directly_in(folder)}
    weights = _weights(key, spec, files)
    return _card(spec, spec.path, commit, weights, config), config


def _weights(key: str, spec: ControlNetSpec, files: Files) -> tuple[Any, ...]:
    """The files of safetensors with the weights; SpecError if there are none, or damaged ones."""
    safe = {name: file for name, file in files.items() if _is_loaded(name)}
    weights = weights_of(safe, _NET, spec.variant)
    if not weights:
        others = sorted(name.removeprefix(f"{_NET}/") for name in safe)
        hint = f"; set `variant` for one of {', '.join(others)}" if others else ""
        raise SpecError(
            f"{key}: {spec.path} has no diffusion_pytorch_model{SAFE}{hint}. Weights of other kinds are not "
            "read, because they can run code"
        )
    check_headers(key, spec.path, spec.revision, weights)
    return weights


def _is_loaded(name: str) -> bool:
    """Whether the name is that of weights in safetensors for which diffusers looks."""
    return (
        name.endswith(SAFE)
        and name.removeprefix(f"{_NET}/").split(".")[0].split("-")[0] == "diffusion_pytorch_model"
    )


def _card(
    spec: ControlNetSpec,
    path: str,
    revision: str,
    weights: tuple[CheckpointFile, ...],
    config: Mapping[str, Any],
) -> ControlNetCard:
    files = ComponentFiles(name=_NET, class_name="", config=weights[0], weights=weights)
    return ControlNetCard(
        path=path,
        revision=revision,
        subfolder=spec.subfolder or "",
        variant=spec.variant,
        sha256=weights[0].sha256() if len(weights) == 1 else files.weights_hash(),
        size_bytes=files.size_bytes,
        # The default of diffusers 0.42.1.
        num_modes=int(config.get("num_control_type", 6)) if config["_class_name"] == UNION else 0,
    )


def _misfit(net: Mapping[str, Any], unet: Mapping[str, Any] | None, card: ModelCard) -> str:
    """How a ControlNet's configuration differs from what the checkpoint needs; empty if it fits.

    `unet`: the configuration of the checkpoint's UNet; None if it is not known here.
    """
    channels = net.get("conditioning_channels", 3)
    if channels != 3:
        return f"its conditioning_channels is {channels!r:.20}, and the images of rows have 3 channels"
    widths = net.get("conditioning_embedding_out_channels") or _EMBEDDING
    factor = 2 ** (len(widths) - 1)
    if factor != card.vae_factor:
        return f"it makes control images {factor} times smaller, and the VAE {card.vae_factor} times"
    if unet is None:
        return ""
    own, needed = net.get("in_channels", 4), unet.get("out_channels", 4)
    if own != needed:
        return f"its in_channels is {own!r:.60}, and the checkpoint's latents have {needed!r:.60} channels"
    for key, default in FIT.items():
        own, needed = net.get(key, default), unet.get(key, default)
        if own != needed:
            made_for = _MADE_FOR.get(own) if key == "cross_attention_dim" and isinstance(own, int) else None
            kind = f"it was made for {made_for}: " if made_for else ""
            return f"{kind}its {key} is {own!r:.60}, the checkpoint's {needed!r:.60}"
    return ""


def net_on_this_machine(net: str, card: ControlNetCard, deadline_s: float) -> Path:
    """The folder on this machine with the ControlNet's files, which are downloaded if need be.

    SpecError if it is missing or has other weights than the driver saw, StorageError if the Hub is in trouble
    for longer than the deadline.
    """
    spec = net_spec(card)
    folder = local_net(spec)
    if folder is None:
        if is_folder_name(card.path):
            raise SpecError(
                f"the ControlNet `{net}`: the folder {card.path} does not exist on {socket.gethostname()}; "
                "it must be one that every machine of the cluster shares, or a Hub repository"
            )
        return _downloaded(net, spec, deadline_s)
    present, _ = _read(f"the ControlNet `{net}`", spec)
    if present.revision != card.revision:
        raise SpecError(
            f"the ControlNet `{net}`: {folder} on {socket.gethostname()} does not have the content that the "
            "driver saw, so images would differ; put the files back, or copy the driver's to every machine"
        )
    return folder


def _downloaded(net: str, spec: ControlNetSpec, deadline_s: float) -> Path:
    below = f"{spec.subfolder}/" if spec.subfolder else ""

    def download() -> Path:
        config = Path(hf_hub_download(spec.path, f"{below}{CONFIG}", revision=spec.revision))
        listed = files_on_hub(spec.path, spec.revision)
        own = {
            f"{_NET}/{each.removeprefix(below)}": listed[each] for each in listed if each.startswith(below)
        }
        weights = weights_of({each: own[each] for each in own if _is_loaded(each)}, _NET, spec.variant)
        for name, file in own.items():
            # The weights of a large one are in several files, with an index.
            if file in weights or name.endswith(".index.json"):
                hf_hub_download(spec.path, below + name.removeprefix(f"{_NET}/"), revision=spec.revision)
        return config.parent

    try:
        return ask_hub(download, spec.path, deadline_s)
    except HUB_ERRORS as error:
        raise SpecError(f"the ControlNet `{net}`: {spec.path} cannot be downloaded: {error}") from error
