"""Refusing checkpoints whose weights would run code when they are read, before a machine is paid for."""

import json
from contextlib import suppress

from httpx2 import HTTPError

from actors.checkpoints import local_folder
from actors.component_files import Files, files_of, files_on_hub, weights_of
from schemas.errors import SpecError
from schemas.spec import ModelSpec

ENDING = ".safetensors"


def refuse_other_weights(name: str, model: ModelSpec, *, with_checker: bool) -> None:
    """SpecError where a component that diffusers would load has no safetensors.

    Of a repository that cannot be asked nothing is said: the worker that fetches it will.
    """
    bare: list[str] = []
    with suppress(OSError, HTTPError):
        files = files_of(model)
        bare = _bare(files, model, with_checker)
        if bare and local_folder(model) is None:
            # What is in the Hub's cache may be half of a download.
            files = files_on_hub(model.checkpoint, model.revision)
            bare = _bare(files, model, with_checker)
    if bare:
        raise SpecError(
            f"models.{name}.checkpoint: {model.checkpoint} has no {ENDING} in {', '.join(bare)}; weights of "
            f"other kinds are not read, for they can run code: {_way_out(files, bare)}"
        )


def _bare(files: Files, model: ModelSpec, with_checker: bool) -> list[str]:
    """Components that should have weights and do not: all that diffusers would load, and a UNet and VAE."""
    index = json.loads(files["model_index.json"].read())
    loaded = {name for name, entry in index.items() if isinstance(entry, list) and entry[:1] != [None]}
    modules = {name for name in loaded if f"{name}/config.json" in files} | {"unet", "vae"}
    if not with_checker:
        modules.discard("safety_checker")
    return sorted(name for name in modules if not weights_of(files, name, model.variant))


def _way_out(files: Files, bare: list[str]) -> str:
    variants = [
        {path.split(".")[-2].partition("-")[0] for path in _safetensors(files, name) if path.count(".") > 1}
        for name in bare
    ]
    if there := sorted(set.intersection(*variants)):
        return f"set `variant: {there[0]}`, which has them"
    return "load it where you trust it, and save it again with diffusers' `save_pretrained`"


def _safetensors(files: Files, component: str) -> list[str]:
    return [path for path in files if path.startswith(f"{component}/") and path.endswith(ENDING)]
