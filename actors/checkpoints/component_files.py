"""A checkpoint's components as files, in a folder or on the Hub, compared without being loaded."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import HfApi, hf_hub_download

from actors.storage.file_hashes import sha256_of

ALLOW_PICKLES = "DARKROOM_ALLOW_PICKLES"
"""The environment variable that allows pickles. If it is 1, weights are read from pickles where a component
has no safetensors. It is not a key of the spec: whoever runs the machines decides what runs on them."""
SAFE, PICKLED = ".safetensors", ".bin"

HUB_TIMEOUT_S = 10.0
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""The components that encode prompts."""
_SAVING_KEYS = ("transformers_version", "dtype", "torch_dtype")
"""Keys of a configuration that say how a component was saved, not what it is."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CheckpointFile(Protocol):
    """One file of a checkpoint."""

    @property
    def size_bytes(self) -> int:
        """The length of the content."""

    def sha256(self) -> str:
        """The content's hash."""

    def read(self) -> bytes:
        """The content of a small file."""


Files = Mapping[str, CheckpointFile]
"""A checkpoint's files by their names in the checkpoint, such as `vae/config.json`."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A checkpoint's file on this machine."""

    path: Path

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def sha256(self) -> str:
        """The content's hash. The whole file is read for it, which can be gigabytes, unless it was before.

        A link into the Hub's cache need never be read: a large file there has its hash as its name
        (huggingface_hub 2.4).
        """
        if self.path.is_symlink():
            # Only one link is followed: its target can link to a store that repositories share, with other
            # names.
            blob = self.path.readlink()
            if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
                return blob.name
        return sha256_of(str(self.path))

    def read(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedFile:
    """A file that a checkpoint's folder will have, and that is known before it is written."""

    content: bytes = b""
    """The content of a small file."""
    size_bytes: int
    hash: str

    def sha256(self) -> str:
        """A hash that tells contents apart; that of weights is not the SHA-256 of their file."""
        return self.hash

    def read(self) -> bytes:
        return self.content


def derived_json(content: Any) -> DerivedFile:
    """A small file with this JSON value."""
    text = json.dumps(content).encode()
    return DerivedFile(content=text, size_bytes=len(text), hash=hashlib.sha256(text).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A checkpoint's file on the Hub that is not downloaded yet, as the Hub describes it."""

    repository: str
    commit: str
    name: str
    size_bytes: int
    hash: str
    """The SHA-256 of its content; for a small file, which is in Git itself, Git's own hash."""

    def sha256(self) -> str:
        return self.hash

    def read(self) -> bytes:
        """The content, which is downloaded now."""
        return Path(hf_hub_download(self.repository, self.name, revision=self.commit)).read_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentFiles:
    """A checkpoint's component that has weights, such as its VAE."""

    name: str
    """The component's name in model_index.json."""
    class_name: str
    config: CheckpointFile
    weights: tuple[CheckpointFile, ...]
    """The files with the weights, sorted by name."""

    @property
    def size_bytes(self) -> int:
        """The size of the weights."""
        return sum(file.size_bytes for file in self.weights)

    def lookup_key(self) -> tuple[str, int, str]:
        """A key that equal components always share, and different ones rarely. No weights are read for it."""
        config = json.loads(self.config.read())
        settings = {
            key: value for key, value in config.items() if not key.startswith("_") and key not in _SAVING_KEYS
        }
        return self.class_name, self.size_bytes, json.dumps(settings, sort_keys=True)

    def weights_hash(self) -> str:
        """A hash of the weights."""
        return hashlib.sha256("".join(file.sha256() for file in self.weights).encode()).hexdigest()


def components_with_weights(files: Files, variant: str | None) -> list[ComponentFiles]:
    """A checkpoint's components that have weights, with the files that diffusers would load."""
    index = json.loads(files["model_index.json"].read())
    components = []
    for name, entry in index.items():
        config = files.get(f"{name}/config.json")
        weights = weights_of(files, name, variant)
        if isinstance(entry, list) and entry[1] and weights and config:
            components.append(
                ComponentFiles(name=name, class_name=str(entry[1]), config=config, weights=weights)
            )
    return components


def files_in(folder: Path) -> Files:
    """The files of a folder that `save_pretrained` wrote, or of a snapshot in the Hub's cache."""
    paths = [folder / "model_index.json", *folder.glob("*/*")]
    return {path.relative_to(folder).as_posix(): LocalFile(path) for path in paths if path.is_file()}


def loaded_bytes(files: Files, variant: str | None) -> int:
    """The size of the weights among these files that diffusers would load.

    Those of other variants and of other folders, such as a trainer's `checkpoint-500`, do not count.
    """
    return sum(component.size_bytes for component in components_with_weights(files, variant))


@lru_cache(maxsize=1024)
def files_on_hub(repository: str, revision: str | None) -> Files:
    """A repository's files with their hashes, from one request. It raises the errors of huggingface_hub."""
    listing = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_S)
    return {
        file.rfilename: HubFile(
            repository=repository,
            commit=str(listing.sha),
            name=file.rfilename,
            size_bytes=file.size or 0,
            hash=file.lfs.sha256 if file.lfs else str(file.blob_id),
        )
        for file in listing.siblings or []
    }


def allows_pickles() -> bool:
    """Whether this machine's operator allows weights to be read from pickles."""
    return os.environ.get(ALLOW_PICKLES) == "1"


def weights_of(files: Files, component: str, variant: str | None) -> tuple[CheckpointFile, ...]:
    """A component's weight files as diffusers chooses them; empty if there are none.

    They are those of the variant, or the plain ones if the variant has none. They are pickles only if these
    are allowed and there are no safetensors.
    """
    for ending in _endings():
        if weights := _weights(files, component, variant, ending) or _weights(files, component, None, ending):
            return weights
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
    file_variant = file.removesuffix(ending).partition(".")[2].partition("-")[0]
    return file_variant == (variant or "")
