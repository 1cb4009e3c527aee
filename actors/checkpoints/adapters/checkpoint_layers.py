"""The layers of a checkpoint that a LoRA can change, with the shapes of their weights, from headers alone."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress

from actors.checkpoints.adapters.lora_layers import TEXT_MODEL, Shape, translated
from actors.checkpoints.component_files import (
    PICKLED,
    CheckpointFile,
    Files,
    HubFile,
    LocalFile,
    weights_of,
)
from actors.checkpoints.hub import HUB_ERRORS
from actors.checkpoints.model_files import files_of
from actors.checkpoints.single_files.safetensors_headers import Header
from actors.checkpoints.single_files.single_file import (
    is_single_file,
    local_header,
    read_single_file,
    remote_header,
)
from schemas.spec.job_spec import ModelSpec

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
"""The components that LoRAs can change."""
_SINGLE_PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "text_encoder": ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."),
}
"""How the names of a component's weights begin in a single file. OpenCLIP's encoders have other layers there,
which are not compared."""

Layers = Mapping[str, Shape]
"""The shapes of a component's weights by layer, with underscores for dots."""


def layers_of(key: str, model: ModelSpec) -> tuple[dict[str, Layers | None], int]:
    """(layers by component, layers_per_block of the UNet) of a checkpoint.

    None: the checkpoint has the component, but its layers are not known before it is downloaded or converted.
    """
    with suppress(*HUB_ERRORS):
        files = files_of(model)
        config = json.loads(files["unet/config.json"].read())
        per_block = config.get("layers_per_block", 2)
        per_block = per_block if isinstance(per_block, int) and per_block > 0 else 2
        present = [name for name in COMPONENTS if f"{name}/config.json" in files]
        if is_single_file(model.checkpoint):
            header = read_single_file(key, model).header
            return {
                name: None if name in model.components else _in_single_file(name, header, per_block)
                for name in present
            }, per_block
        return {name: _in_files(name, files, model.variant) for name in present}, per_block
    return dict.fromkeys(COMPONENTS), 2


def _in_files(component: str, files: Files, variant: str | None) -> Layers | None:
    weights = weights_of(files, component, variant)
    headers = [_header(file) for file in weights]
    known = [header for header in headers if header is not None]
    if not known or len(known) < len(headers):
        return None
    return dict(layer for header in known for layer in _layers("", header))


def _header(file: CheckpointFile) -> Header | None:
    try:
        if isinstance(file, LocalFile) and file.path.suffix != PICKLED:
            return local_header(file.path)
        if isinstance(file, HubFile) and not file.name.endswith(PICKLED):
            return remote_header(file.repository, file)
    except ValueError:
        pass  # The check of the checkpoint's weights tells what is wrong with the file.
    return None


def _in_single_file(component: str, header: Header, layers_per_block: int) -> Layers | None:
    layers = {
        translated(name, layers_per_block) if component == "unet" else name: shape
        for prefix in _SINGLE_PREFIXES.get(component, ())
        for name, shape in _layers(prefix, header)
    }
    return layers or None


def _layers(prefix: str, header: Header) -> Iterator[tuple[str, Shape]]:
    for name, tensor in header.tensors.items():
        if name.startswith(prefix) and name.endswith(".weight"):
            flat = name[len(prefix) :].removesuffix(".weight").replace(".", "_")
            yield flat.removeprefix(TEXT_MODEL), tensor.shape
