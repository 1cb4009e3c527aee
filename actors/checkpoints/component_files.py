"""The parts of a checkpoint, in a folder or on the Hub, and which of two are the same: nothing is loaded."""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from httpx2 import HTTPError
from huggingface_hub import HfApi, hf_hub_download

from actors.checkpoints.checkpoint_folders import local_folder
from schemas.spec.job_spec import ModelSpec

ALLOW_PICKLES = "DARKROOM_ALLOW_PICKLES"
"""A variable of the environment, not a key of the spec: whoever runs the machines decides what runs on them.
With 1, weights are read from pickles where a component has no safetensors."""
SAFE, PICKLED = ".safetensors", ".bin"

HUB_TIMEOUT_S = 10.0
_BLOCK_BYTES = 1 << 20
_NOTES = ("transformers_version", "dtype", "torch_dtype")
"""Keys of a configuration that say how it was saved, not what it is."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CheckpointFile(Protocol):
    """One file of a checkpoint."""

    @property
    def size_bytes(self) -> int:
        """Length of the content."""

    def sha256(self) -> str:
        """Of the content."""

    def read(self) -> bytes:
        """The whole of a small one."""


Files = Mapping[str, CheckpointFile]
"""A checkpoint's files by their names in it: `vae/config.json`."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine."""

    path: Path

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def sha256(self) -> str:
        """Gigabytes are read for it, but for a link into the Hub's cache, where a large file's name is its
        hash (huggingface_hub 2.4)."""
        if self.path.is_symlink():
            # One link on, not to its end: that can be the store which repositories share, with other names.
            blob = self.path.readlink()
            if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
                return blob.name
        stat = self.path.stat()
        return _hash_once(str(self.path), stat.st_size, stat.st_mtime_ns)

    def read(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file that is not downloaded yet, by what the Hub says of it."""

    repository: str
    commit: str
    name: str
    size_bytes: int
    hash: str
    """Its SHA-256; of a small file that Git holds itself, Git's own hash."""

    def sha256(self) -> str:
        return self.hash

    def read(self) -> bytes:
        """Downloads it."""
        return Path(hf_hub_download(self.repository, self.name, revision=self.commit)).read_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentFiles:
    """One component of a checkpoint that has weights: its VAE, say."""

    name: str
    """As model_index.json calls it."""
    class_name: str
    config: CheckpointFile
    weights: tuple[CheckpointFile, ...]
    """In the order of their names."""

    @property
    def size_bytes(self) -> int:
        """Of its weights."""
        return sum(file.size_bytes for file in self.weights)

    def looks_like(self) -> tuple[str, int, str]:
        """What two equal components surely share; cheap, and rarely equal for different ones."""
        config = json.loads(self.config.read())
        built = {key: value for key, value in config.items() if not key.startswith("_") and key not in _NOTES}
        return self.class_name, self.size_bytes, json.dumps(built, sort_keys=True)

    def content(self) -> str:
        """A hash of the weights themselves."""
        return hashlib.sha256("".join(file.sha256() for file in self.weights).encode()).hexdigest()


def component_files(files: Files, variant: str | None) -> list[ComponentFiles]:
    """A checkpoint's components with weights, as diffusers would load them."""
    index = json.loads(files["model_index.json"].read())
    found = []
    for name, entry in index.items():
        config = files.get(f"{name}/config.json")
        weights = weights_of(files, name, variant)
        if isinstance(entry, list) and entry[1] and weights and config:
            found.append(ComponentFiles(name=name, class_name=str(entry[1]), config=config, weights=weights))
    return found


def files_in(folder: Path) -> Files:
    """The files of a folder that `save_pretrained` wrote, or of a snapshot in the Hub's cache."""
    found = [folder / "model_index.json", *folder.glob("*/*")]
    return {path.relative_to(folder).as_posix(): LocalFile(path) for path in found if path.is_file()}


def bytes_shared(models: Mapping[str, ModelSpec]) -> int:
    """Bytes of weights that need not be held twice, because another checkpoint has the very same component.

    Nothing is said of repositories that are neither on this machine nor can be asked for.
    """
    if len(models) < 2:
        return 0
    alike: dict[object, list[ComponentFiles]] = defaultdict(list)
    for spec in models.values():
        with suppress(OSError, HTTPError):
            for component in component_files(files_of(spec), spec.variant):
                alike[(spec.dtype, component.looks_like())].append(component)
    saved = 0
    for group in alike.values():
        if len(group) > 1:
            distinct = {component.content() for component in group}
            saved += group[0].size_bytes * (len(group) - len(distinct))
    return saved


def files_of(model: ModelSpec) -> Files:
    """A checkpoint's files on this machine, or before the download those that the Hub lists."""
    folder = local_folder(model)
    if folder is not None:
        return files_in(folder)
    index = hf_hub_download(model.checkpoint, "model_index.json", revision=model.revision)
    files = files_in(Path(index).parent)
    if any(_weights(files, "unet", model.variant, ending) for ending in _endings()):
        return files
    return files_on_hub(model.checkpoint, model.revision)


@lru_cache(maxsize=1024)
def files_on_hub(repository: str, revision: str | None) -> Files:
    """A repository's files with their hashes, by one request; the errors of huggingface_hub."""
    found = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_S)
    return {
        file.rfilename: HubFile(
            repository=repository,
            commit=str(found.sha),
            name=file.rfilename,
            size_bytes=file.size or 0,
            hash=file.lfs.sha256 if file.lfs else str(file.blob_id),
        )
        for file in found.siblings or []
    }


def allows_pickles() -> bool:
    """Whether this machine's operator lets weights be read that are no safetensors."""
    return os.environ.get(ALLOW_PICKLES) == "1"


def weights_of(files: Files, component: str, variant: str | None) -> tuple[CheckpointFile, ...]:
    """A component's weight files as diffusers takes them: the plain ones where none are the variant's, and
    pickles only where they are allowed and there is nothing else."""
    for ending in _endings():
        if found := _weights(files, component, variant, ending) or _weights(files, component, None, ending):
            return found
    return ()


def _endings() -> tuple[str, ...]:
    return (SAFE, PICKLED) if allows_pickles() else (SAFE,)


def _weights(files: Files, component: str, variant: str | None, ending: str) -> tuple[CheckpointFile, ...]:
    return tuple(files[name] for name in sorted(files) if _is_weights(name, component, variant, ending))


def _is_weights(name: str, component: str, variant: str | None, ending: str) -> bool:
    folder, _, file = name.rpartition("/")
    if folder != component or not file.endswith(ending):
        return False
    # model.safetensors, model.fp16.safetensors, model-00001-of-00002.safetensors
    named = file.removesuffix(ending).partition(".")[2]
    return named.partition("-")[0] == (variant or "")


@lru_cache(maxsize=1024)
def _hash_once(file: str, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
