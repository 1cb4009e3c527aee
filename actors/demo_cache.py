"""Where the `demo:KIND` checkpoints lie, and how they come to be, without importing torch.

The driver's plan reads a checkpoint's configuration files and must answer at once, so this
module never imports what builds them: `actors.demo_model` runs in a process of its own.
"""

import hashlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from schemas.errors import SpecError

KINDS = (
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
SOURCES = ("demo_model.py", "demo_parts.py")
"""The modules that build them."""
SEED = 0
BUILD_TIMEOUT_S = 300
ROOT = Path(__file__).parent.parent


def demo_checkpoint(kind: str) -> Path:
    """Return the folder of a `demo:KIND` checkpoint, built now if this machine has none yet."""
    folder = demo_folder(kind)
    if not _is_whole(folder):
        try:
            build_apart(folder, kind)
        except SpecError:
            # Of several that build at once, the first to rename wins; the others find it there.
            if not _is_whole(folder):
                raise
    return folder


def demo_folder(kind: str) -> Path:
    """Return where the checkpoint belongs: another builder or library version, another folder."""
    check_kind(kind)
    return _cache_folder() / f"demo-{kind}-{_digest()}"


def check_kind(kind: str) -> None:
    """Raise SpecError, with the kinds there are, for one that nothing builds."""
    if kind not in KINDS:
        raise SpecError(f"unknown kind of demo checkpoint {kind!r}; choose one of {', '.join(KINDS)}")


def build_apart(folder: Path, kind: str, seed: int = SEED) -> None:
    """Build in a process of its own; SpecError, with what the builder said, where it cannot."""
    check_kind(kind)
    command = [sys.executable, "-m", "actors.demo_model", str(folder.absolute()), kind, str(seed)]
    try:
        built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SpecError(f"building a demo checkpoint took longer than {BUILD_TIMEOUT_S} s") from error
    if built.returncode:
        raise SpecError(f"cannot build demo:{kind} as {folder}: {_last_line(built.stderr)}")


def _is_whole(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["the builder said nothing"])[-1]


def _digest() -> str:
    sources = b"".join(Path(__file__).with_name(name).read_bytes() for name in SOURCES)
    versions = [f"{name}={version(name)}" for name in ("diffusers", "transformers", "torch")]
    return hashlib.sha256(sources + "\n".join(versions).encode()).hexdigest()[:12]


def _cache_folder() -> Path:
    named = os.environ.get("DARKROOM_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "darkroom"
