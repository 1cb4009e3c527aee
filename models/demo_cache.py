"""The folders of the `demo:KIND` checkpoints, which are built if they are missing, without importing torch.

The driver's plan reads a checkpoint's configuration files and must answer at once. So this module never
imports the builder of random weights, `demo.random_checkpoints`, but runs it in a process of its own.
"""

import hashlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from models import trained_models
from models.caches import cache_folder
from models.whole_folder import all_or_nothing, refuse_used
from schemas.errors import SpecError

SCHEME = "demo:"
"""How the paths begin that name what comes with darkroom, or what it builds."""
RANDOM_KINDS = (
    "sd",
    "sd-safety",
    "sd-inpaint",
    "sd2",
    "depth2img",
    "variation",
    "safe",
    "sdxl",
    "sdxl-inpaint",
    "sdxl-refiner",
    "upscale",
    "latent-upscale",
    "ldm3d",
    "ldm3d-4c",
    "ldm3d-upscale",
)
"""Kinds with random weights, which are built on first use."""
KINDS = (*RANDOM_KINDS, *trained_models.KINDS)
SOURCES = ("random_checkpoints.py", "small_components.py")
"""The modules that build the checkpoints with random weights."""
SEED = 0
BUILD_TIMEOUT_S = 300


def demo_checkpoint(kind: str) -> Path:
    """The folder of a `demo:KIND` checkpoint, which is built now if this machine does not have it yet."""
    build_missing([kind])
    return demo_folder(kind)


def build_missing(kinds: Iterable[str]) -> None:
    """Build the checkpoints that this machine lacks, all in one process, because its imports take longest."""
    missing = {kind: folder for kind in kinds if not _is_whole(folder := demo_folder(kind))}
    if not missing:
        return
    problem = _build(missing, SEED)
    # If several processes build at once, the first to rename wins, and the others use its folder.
    for kind, folder in missing.items():
        if not _is_whole(folder):
            raise SpecError(f"cannot build demo:{kind} as {folder}: {problem}")


def demo_folder(kind: str) -> Path:
    """The folder of a demo checkpoint in the cache. Another builder or library version has another folder."""
    check_kind(kind)
    digest = trained_models.digest() if kind in trained_models.KINDS else _digest()
    return cache_folder() / f"demo-{kind}-{digest}"


def check_kind(kind: str) -> None:
    """Raise SpecError, with the list of kinds, if this is not one of them."""
    if kind not in KINDS:
        raise SpecError(f"unknown kind of demo checkpoint {kind!r}; choose one of {', '.join(KINDS)}")


def build(folder: Path, kind: str, seed: int = SEED) -> None:
    """Build a checkpoint of `kind` as `folder`; SpecError, with the builder's message, if that fails.

    `seed` is for random weights.
    """
    check_kind(kind)
    refuse_used(folder)  # before the builder takes seconds to import torch
    if problem := _build({kind: folder}, seed):
        raise SpecError(f"cannot build demo:{kind} as {folder}: {problem}")


def _build(folders: Mapping[str, Path], seed: int) -> str:
    """Build the checkpoints; return the last error message, or an empty text if all of them are built."""
    problem = ""
    for kind in folders.keys() & set(trained_models.KINDS):
        try:
            with all_or_nothing(folders[kind]) as unfinished:
                trained_models.put_together(kind, unfinished)
        except SpecError as error:
            problem = str(error)
    random = {kind: folder for kind, folder in folders.items() if kind in RANDOM_KINDS}
    return (_build_random(random, seed) if random else "") or problem


def _build_random(folders: Mapping[str, Path], seed: int) -> str:
    """Build checkpoints with random weights, as `_build` does."""
    try:
        # Before the builder takes seconds to import torch.
        for folder in folders.values():
            folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    targets = [str(argument) for kind, folder in folders.items() for argument in (kind, folder.absolute())]
    return run_builder("demo.random_checkpoints", str(seed), *targets)


def run_builder(module: str, *arguments: str) -> str:
    """Run a module in a process of its own, because it needs torch; the last line of its errors, or an empty
    text.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        built = subprocess.run(
            command, cwd=builder_folder().parent, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise SpecError(f"building for the demo took longer than {BUILD_TIMEOUT_S} s") from error
    return _last_line(built.stderr) if built.returncode else ""


def _is_whole(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["the builder printed no error"])[-1]


def builder_folder() -> Path:
    """The folder of the package demo, whose modules build the checkpoints with random weights.

    It is looked up and not imported, because it needs torch. Ray ships each package to a folder of its own.
    """
    package = find_spec("demo")
    assert package is not None, "demo is a part of darkroom"
    assert package.submodule_search_locations, "demo is a folder"
    return Path(package.submodule_search_locations[0])


def _digest() -> str:
    sources = b"".join((builder_folder() / name).read_bytes() for name in SOURCES)
    versions = [f"{name}={version(name)}" for name in ("diffusers", "transformers", "torch")]
    return hashlib.sha256(sources + "\n".join(versions).encode()).hexdigest()[:12]
