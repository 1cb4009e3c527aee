"""The demo's checkpoints that are trained: they come with darkroom, and are put together without torch."""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path

import models

KINDS = ("shapes", "shapes-ldm3d", "shapes-depth2img")
"""Each a folder below models/. What its model_index.json names and it does not hold is the first one's."""
FOLDER = Path(models.__file__).parent


def put_together(kind: str, folder: Path) -> None:
    """Copy the checkpoint of `kind` to `folder`, which is new."""
    shutil.copytree(FOLDER / kind, folder)
    for name in _components(folder):
        if not (folder / name).exists():
            shutil.copytree(FOLDER / KINDS[0] / name, folder / name)


def _components(folder: Path) -> list[str]:
    index = json.loads((folder / "model_index.json").read_text())
    # Entries are [library, class]; a component that the pipeline does without is [null, null].
    return [name for name, entry in index.items() if isinstance(entry, list) and entry[0]]


@cache
def digest() -> str:
    """A digest of the files of all checkpoints that come with darkroom."""
    found = hashlib.sha256()
    for path in sorted(path for kind in KINDS for path in (FOLDER / kind).rglob("*")):
        if path.is_file():
            found.update(path.relative_to(FOLDER).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]
