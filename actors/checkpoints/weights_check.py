"""The check that a checkpoint's weights are safetensors and complete, before a machine is paid for."""

import json
from contextlib import suppress

from actors.checkpoints.checkpoint_folders import local_folder
from actors.checkpoints.component_files import (
    ALLOW_PICKLES,
    PICKLED,
    SAFE,
    CheckpointFile,
    Files,
    LocalFile,
    weights_of,
)
from actors.checkpoints.hub import HUB_ERRORS
from actors.checkpoints.model_files import files_of
from actors.checkpoints.single_files.safetensors_headers import refuse_whole_numbers
from actors.checkpoints.single_files.single_file import local_header
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec


def check_weights(name: str, model: ModelSpec, *, with_checker: bool) -> None:
    """Raise SpecError if a component that diffusers would load has no safetensors, or damaged ones.

    Nothing is raised for a repository that cannot be reached: the worker that downloads it checks it.
    """
    with suppress(*HUB_ERRORS):
        files = files_of(model)
        weights = _weights(files, model, with_checker)
        may_be_on_hub = local_folder(model) is None or model.components
        if (not all(weights.values()) or _absent(files, with_checker)) and may_be_on_hub:
            files = files_of(model, listed=True)
            weights = _weights(files, model, with_checker)
        if absent := _absent(files, with_checker):
            raise SpecError(
                f"{_origin(name, model, absent)} has no files of its {', '.join(absent)}, which its "
                "model_index.json names; copy or download it again"
            )
        if unsafe := [component for component, component_weights in weights.items() if not component_weights]:
            raise SpecError(
                f"{_origin(name, model, unsafe)} has no {SAFE} in {', '.join(unsafe)}; weights of other "
                f"kinds are not read, because they can run code: {_how_to_fix(files, unsafe)}"
            )
        for component, component_weights in weights.items():
            _check_complete(f"{_origin(name, model, [component])}: {component}", component_weights)


def _origin(name: str, model: ModelSpec, components: list[str]) -> str:
    """The key and the place of the checkpoint, or of a component that is named by itself."""
    named = [part for part in components if part in model.components]
    if named and len(named) == len(components):
        return f"models.{name}.components.{named[0]}: {model.components[named[0]].path}"
    return f"models.{name}.checkpoint: {model.checkpoint}"


def _loaded_components(files: Files, with_checker: bool) -> list[str]:
    """The names of all components that diffusers would load."""
    index = json.loads(files["model_index.json"].read())
    named = (name for name, entry in index.items() if isinstance(entry, list) and entry[:1] != [None])
    return [name for name in named if with_checker or name != "safety_checker"]


def _absent(files: Files, with_checker: bool) -> list[str]:
    """The names of components without any file, such as a tokenizer that was not copied."""
    folders = {path.partition("/")[0] for path in files}
    return [name for name in _loaded_components(files, with_checker) if name not in folders]


def _weights(files: Files, model: ModelSpec, with_checker: bool) -> dict[str, tuple[CheckpointFile, ...]]:
    """The weight files by component: of UNet, VAE, and every other module that diffusers would load."""
    loaded = _loaded_components(files, with_checker)
    modules = {name for name in loaded if f"{name}/config.json" in files} | {"unet", "vae"}
    return {name: weights_of(files, name, model.variant) for name in sorted(modules)}


def _check_complete(prefix: str, weights: tuple[CheckpointFile, ...]) -> None:
    """Raise SpecError if a file is not as long as its header says, or has weights that are not loaded.

    The message begins with `prefix`.
    """
    for file in weights:
        if not isinstance(file, LocalFile) or file.path.suffix == PICKLED:
            continue
        try:
            header = local_header(file.path)
        except ValueError as error:
            raise SpecError(
                f"{prefix}/{file.path.name} is damaged, half copied, or a Git LFS pointer: {error}. "
                "Copy or download it again"
            ) from error
        try:
            refuse_whole_numbers(header.tensors)
        except ValueError as error:
            raise SpecError(f"{prefix}/{file.path.name} cannot be used: {error}") from error


def _how_to_fix(files: Files, unsafe: list[str]) -> str:
    """What the user can do about components without safetensors."""
    variants = [
        {
            path.split(".")[-2].partition("-")[0]
            for path in _files_of_kind(files, name, SAFE)
            if path.count(".") > 1
        }
        for name in unsafe
    ]
    if safe_variants := sorted(set.intersection(*variants)):
        return f"set `variant: {safe_variants[0]}`, which has them"
    save_again = "load it where you trust it, and save it again with diffusers' `save_pretrained`"
    if not all(any(_files_of_kind(files, name, PICKLED)) for name in unsafe):
        return save_again
    return f"{save_again}; or, if you trust it here, set {ALLOW_PICKLES}=1 for the driver and all workers"


def _files_of_kind(files: Files, component: str, ending: str) -> list[str]:
    return [path for path in files if path.startswith(f"{component}/") and path.endswith(ending)]
