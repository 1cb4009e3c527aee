"""Where the `demo:KIND` checkpoints lie, and how they come to be, without importing torch.

The driver's plan reads a checkpoint's configuration files and must answer at once, so this
module never imports what builds them: `demo.random_checkpoints` runs in a process of its own.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from models import trained_models
from models.whole_folder import all_or_nothing
from schemas.errors import SpecError

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
"""With random weights, built here."""
KINDS = (*RANDOM_KINDS, *trained_models.KINDS)
SOURCES = ("random_checkpoints.py", "small_components.py")
"""The modules that build those with random weights."""
SEED = 0
BUILD_TIMEOUT_S = 300
ROOT = Path(__file__).parent.parent


def demo_checkpoint(kind: str) -> Path:
    """Return the folder of a `demo:KIND` checkpoint, built now if this machine has none yet."""
    build_missing([kind])
    return demo_folder(kind)


def build_missing(kinds: Iterable[str]) -> None:
    """Build the checkpoints that this machine lacks, in one process: its imports take longer than they do."""
    missing = {kind: folder for kind in kinds if not _is_whole(folder := demo_folder(kind))}
    if not missing:
        return
    said = _make(missing, SEED)
    # Of several that build at once, the first to rename wins; the others find it there.
    for kind, folder in missing.items():
        if not _is_whole(folder):
            raise SpecError(f"cannot build demo:{kind} as {folder}: {said}")


def demo_folder(kind: str) -> Path:
    """Return where the checkpoint belongs: another builder or library version, another folder."""
    check_kind(kind)
    digest = trained_models.digest() if kind in trained_models.KINDS else _digest()
    return _cache_folder() / f"demo-{kind}-{digest}"


def check_kind(kind: str) -> None:
    """Raise SpecError, with the kinds there are, for one that nothing builds."""
    if kind not in KINDS:
        raise SpecError(f"unknown kind of demo checkpoint {kind!r}; choose one of {', '.join(KINDS)}")


def build(folder: Path, kind: str, seed: int = SEED) -> None:
    """Make `folder` a checkpoint of `kind`; SpecError, with what the builder said, where it cannot.

    `seed`: of random weights.
    """
    check_kind(kind)
    if said := _make({kind: folder}, seed):
        raise SpecError(f"cannot build demo:{kind} as {folder}: {said}")


def _make(folders: Mapping[str, Path], seed: int) -> str:
    """The last words on what could not be made; empty where everything is."""
    said = ""
    for kind in folders.keys() & set(trained_models.KINDS):
        try:
            with all_or_nothing(folders[kind]) as unfinished:
                trained_models.put_together(kind, unfinished)
        except SpecError as error:
            said = str(error)
    random = {kind: folder for kind, folder in folders.items() if kind in RANDOM_KINDS}
    return (_build_apart(random, seed) if random else "") or said


def _build_apart(folders: Mapping[str, Path], seed: int) -> str:
    """In a process of its own: the builder's last words on what it could not build, or nothing."""
    places = [str(part) for kind, folder in folders.items() for part in (kind, folder.absolute())]
    command = [sys.executable, "-m", "demo.random_checkpoints", str(seed), *places]
    try:
        built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SpecError(f"building demo checkpoints took longer than {BUILD_TIMEOUT_S} s") from error
    return _last_line(built.stderr) if built.returncode else ""


def _is_whole(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["the builder said nothing"])[-1]


def _digest() -> str:
    sources = b"".join((ROOT / "demo" / name).read_bytes() for name in SOURCES)
    versions = [f"{name}={version(name)}" for name in ("diffusers", "transformers", "torch")]
    return hashlib.sha256(sources + "\n".join(versions).encode()).hexdigest()[:12]


def _cache_folder() -> Path:
    named = os.environ.get("DARKROOM_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "darkroom"
