"""The parts of a checkpoint on disk, and which parts of two checkpoints are the same: nothing is loaded."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from actors.checkpoints import local_folder
from schemas.spec import ModelSpec

_BLOCK_BYTES = 1 << 20
_NOTES = ("transformers_version", "dtype", "torch_dtype")
"""Keys of a configuration that say how it was saved, not what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentFiles:
    """One component of a checkpoint that has weights: its VAE, say."""

    name: str
    """As model_index.json calls it."""
    class_name: str
    config: Path
    weights: tuple[Path, ...]
    size_bytes: int

    def looks_like(self) -> tuple[str, int, str]:
        """What two equal components surely share; cheap, and rarely equal for different ones."""
        config = json.loads(self.config.read_bytes())
        built = {key: value for key, value in config.items() if not key.startswith("_") and key not in _NOTES}
        return self.class_name, self.size_bytes, json.dumps(built, sort_keys=True)

    def content(self) -> str:
        """A hash of the weights themselves."""
        return hashlib.sha256("".join(map(_sha256, self.weights)).encode()).hexdigest()


def component_files(folder: Path, variant: str | None) -> list[ComponentFiles]:
    """A checkpoint's components with weights, as diffusers would load them."""
    index = json.loads((folder / "model_index.json").read_bytes())
    found = []
    for name, entry in index.items():
        config = folder / name / "config.json"
        weights = tuple(sorted(_weights(folder / name, variant)))
        if isinstance(entry, list) and entry[1] and weights and config.is_file():
            size = sum(file.stat().st_size for file in weights)
            found.append(
                ComponentFiles(
                    name=name, class_name=str(entry[1]), config=config, weights=weights, size_bytes=size
                )
            )
    return found


def bytes_shared(models: Mapping[str, ModelSpec]) -> int:
    """Bytes of weights that need not be held twice, because another checkpoint has the very same component.

    Checkpoints that are not on this machine yet are left out.
    """
    alike: dict[object, list[ComponentFiles]] = defaultdict(list)
    for folder, spec in _folders(models):
        for component in component_files(folder, spec.variant):
            alike[(spec.dtype, component.looks_like())].append(component)
    saved = 0
    for group in alike.values():
        if len(group) > 1:
            distinct = {component.content() for component in group}
            saved += group[0].size_bytes * (len(group) - len(distinct))
    return saved


def _folders(models: Mapping[str, ModelSpec]) -> Iterator[tuple[Path, ModelSpec]]:
    for spec in models.values():
        folder = local_folder(spec)
        if folder is not None:
            yield folder, spec


def _weights(folder: Path, variant: str | None) -> Iterator[Path]:
    for file in folder.glob("*.safetensors"):
        # model.safetensors, model.fp16.safetensors, model-00001-of-00002.safetensors
        named = file.name.removesuffix(".safetensors").partition(".")[2]
        if named.partition("-")[0] == (variant or ""):
            yield file


def _sha256(file: Path) -> str:
    stat = file.stat()
    return _hash_once(str(file), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hash_once(file: str, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
