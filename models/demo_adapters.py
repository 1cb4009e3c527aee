"""Adapters for demo checkpoints: trained ones, which a spec names as `demo:KIND`, and ones of random weights.

As in `demo_cache`, what needs torch runs in a process of its own.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import models
from models.demo_cache import SCHEME, demo_checkpoint, run_builder
from models.whole_folder import all_or_nothing, refuse_used
from schemas.errors import SpecError

TRAINED: Mapping[str, str] = {
    "night": "shapes-night/pytorch_lora_weights.safetensors",
    "outline": "shapes-outline",
}
"""By kind, the file or folder below models/ of what comes with darkroom for `demo:shapes`."""
RANDOM_KINDS = ("lora", "controlnet")
"""Kinds with random weights, which are built for a checkpoint."""
KINDS = (*TRAINED, *RANDOM_KINDS)
_FOLDER = Path(models.__file__).parent


def demo_adapter(path: str) -> Path | None:
    """The file or folder of `demo:KIND`; None for other paths. SpecError for a kind that is not trained."""
    if not path.startswith(SCHEME):
        return None
    kind = path.removeprefix(SCHEME)
    if kind not in TRAINED:
        raise SpecError(f"unknown kind of demo adapter {kind!r:.100}; choose one of {', '.join(TRAINED)}")
    return _FOLDER / TRAINED[kind]


def build(folder: Path, kind: str, checkpoint: str, seed: int) -> None:
    """Build an adapter of one of KINDS as `folder`; SpecError, with the builder's message, if that fails.

    `checkpoint`: a folder or `demo:KIND`; it and `seed` are for random weights.
    """
    refuse_used(folder)  # before the builder takes seconds to import torch
    if kind in TRAINED:
        with all_or_nothing(folder) as unfinished:
            shutil.copytree(_FOLDER / Path(TRAINED[kind]).parts[0], unfinished)
        return
    is_demo = checkpoint.startswith(SCHEME)
    base = (
        demo_checkpoint(checkpoint.removeprefix(SCHEME))
        if is_demo
        else Path(checkpoint).expanduser().absolute()
    )
    if not (base / "model_index.json").is_file():
        raise SpecError(f"{checkpoint} is not a checkpoint; name a folder that has one, or demo:KIND")
    if problem := run_builder("demo.random_adapters", kind, str(base), str(folder.absolute()), str(seed)):
        raise SpecError(f"cannot build a {kind} for {checkpoint} as {folder}: {problem}")
