"""The demo's trained checkpoints, which come with darkroom and are assembled without torch."""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path

import models

KINDS = ("shapes", "shapes-ldm3d", "shapes-depth2img")
"""The kinds, each a folder below models/. Components that a folder lacks are those of the first kind."""
FOLDER = Path(models.__file__).parent


def put_together(kind: str, folder: Path) -> None:
    """Copy all components of the checkpoint of `kind` to `folder`, which must not exist."""
    shutil.copytree(FOLDER / kind, folder)
    for name in _components(folder):
        if not (folder / name).exists():
            shutil.copytree(FOLDER / KINDS[0] / name, folder / name)


def _components(folder: Path) -> list[str]:
    index = json.loads((folder / "model_index.json").read_text())
    # Entries are [library, class]. A component that the pipeline does not use is [null, null].
    return [name for name, entry in index.items() if isinstance(entry, list) and entry[0]]


@cache
def digest() -> str:
    """A digest of the files of all checkpoints that come with darkroom."""
    sha256 = hashlib.sha256()
    for path in sorted(path for kind in KINDS for path in (FOLDER / kind).rglob("*")):
        if path.is_file():
            sha256.update(path.relative_to(FOLDER).as_posix().encode() + b"\0" + path.read_bytes())
    return sha256.hexdigest()[:12]
