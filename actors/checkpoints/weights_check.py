"""Looking at a checkpoint's weights before a machine is paid for: their kind and whether they are whole."""

import json
from contextlib import suppress

from httpx2 import HTTPError
from safetensors import SafetensorError, safe_open

from actors.checkpoints.checkpoint_folders import local_folder
from actors.checkpoints.component_files import (
    ALLOW_PICKLES,
    PICKLED,
    SAFE,
    CheckpointFile,
    Files,
    LocalFile,
    files_of,
    files_on_hub,
    weights_of,
)
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec


def check_weights(name: str, model: ModelSpec, *, with_checker: bool) -> None:
    """SpecError where a component that diffusers would load has no safetensors, or damaged ones.

    Of a repository that cannot be asked nothing is said: the worker that fetches it will.
    """
    with suppress(OSError, HTTPError):
        files = files_of(model)
        found = _weights(files, model, with_checker)
        if (not all(found.values()) or _absent(files, with_checker)) and local_folder(model) is None:
            # What is in the Hub's cache may be half of a download.
            files = files_on_hub(model.checkpoint, model.revision)
            found = _weights(files, model, with_checker)
        place = f"models.{name}.checkpoint: {model.checkpoint}"
        if absent := _absent(files, with_checker):
            raise SpecError(
                f"{place} has no files of its {', '.join(absent)}, which its model_index.json names; "
                "copy or download it again"
            )
        if bare := [component for component, weights in found.items() if not weights]:
            raise SpecError(
                f"{place} has no {SAFE} in {', '.join(bare)}; weights of other kinds are not read, for "
                f"they can run code: {_way_out(files, bare)}"
            )
        for component, weights in found.items():
            _check_whole(f"{place}: {component}", weights)


def _loaded(files: Files, with_checker: bool) -> list[str]:
    """All components that diffusers would load."""
    index = json.loads(files["model_index.json"].read())
    named = (name for name, entry in index.items() if isinstance(entry, list) and entry[:1] != [None])
    return [name for name in named if with_checker or name != "safety_checker"]


def _absent(files: Files, with_checker: bool) -> list[str]:
    """Components of which there is nothing: a tokenizer that was not copied, say."""
    there = {path.partition("/")[0] for path in files}
    return [name for name in _loaded(files, with_checker) if name not in there]


def _weights(files: Files, model: ModelSpec, with_checker: bool) -> dict[str, tuple[CheckpointFile, ...]]:
    """Of each component that should have weights: all that diffusers would load, and a UNet and VAE."""
    loaded = _loaded(files, with_checker)
    modules = {name for name in loaded if f"{name}/config.json" in files} | {"unet", "vae"}
    return {name: weights_of(files, name, model.variant) for name in sorted(modules)}


def _check_whole(place: str, weights: tuple[CheckpointFile, ...]) -> None:
    """By the header, which says how long the file must be."""
    for file in weights:
        if not isinstance(file, LocalFile) or file.path.suffix == PICKLED:
            continue
        try:
            with safe_open(file.path, framework="np"):
                pass
        except SafetensorError as error:
            raise SpecError(
                f"{place}/{file.path.name} is damaged, half copied, or a Git LFS pointer: {error}. "
                "Copy or download it again"
            ) from error


def _way_out(files: Files, bare: list[str]) -> str:
    variants = [
        {
            path.split(".")[-2].partition("-")[0]
            for path in _files_of_kind(files, name, SAFE)
            if path.count(".") > 1
        }
        for name in bare
    ]
    if there := sorted(set.intersection(*variants)):
        return f"set `variant: {there[0]}`, which has them"
    saved_again = "load it where you trust it, and save it again with diffusers' `save_pretrained`"
    if not all(any(_files_of_kind(files, name, PICKLED)) for name in bare):
        return saved_again
    return f"{saved_again}; or, where you trust it here, set {ALLOW_PICKLES}=1 for the driver and all workers"


def _files_of_kind(files: Files, component: str, ending: str) -> list[str]:
    return [path for path in files if path.startswith(f"{component}/") and path.endswith(ending)]
