"""Checkpoints with named components as folders of links, from which diffusers loads them as any other."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from actors.checkpoints.component_files import Files, LocalFile, files_in
from models.caches import cache_folder
from models.whole_folder import all_or_nothing
from schemas.errors import SpecError


def composed_folder(checkpoint: Path, components: Files, index: Mapping[str, object]) -> Path:
    """A folder with the checkpoint's own components and these in place of those of the same names.

    `components` are files of this machine, by their names in the composed checkpoint.
    """
    replaced = {name.partition("/")[0] for name in components}
    own = {
        name: file for name, file in files_in(checkpoint).items() if name.partition("/")[0] not in replaced
    }
    own.pop("model_index.json")
    links = {
        name: _target(file) for name, file in {**own, **components}.items() if isinstance(file, LocalFile)
    }
    text = json.dumps(index, indent=2)
    lines = "".join(f"{name} {target}\n" for name, target in sorted(links.items()))
    digest = hashlib.sha256(f"{text}\n{lines}".encode(errors="surrogateescape")).hexdigest()[:32]
    folder = cache_folder() / f"composed-{digest}"
    if not folder.is_dir():
        try:
            with all_or_nothing(folder) as unfinished:
                _write(unfinished, text, links)
        except SpecError:
            if not folder.is_dir():  # Otherwise another process was the first to rename its own.
                raise
    return folder


def _target(file: LocalFile) -> Path:
    """Where a link to the file leads: in the Hub's cache to the blob, which has its hash as its name."""
    path = file.path
    target = path.parent / path.readlink() if path.is_symlink() else path
    return Path(os.path.normpath(target.absolute()))


def _write(folder: Path, index: str, links: Mapping[str, Path]) -> None:
    folder.mkdir()
    (folder / "model_index.json").write_text(index)
    for name, target in links.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
