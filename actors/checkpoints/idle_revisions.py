"""Revisions of what is not on the Hub, which would mean nothing: files on this machine or on S3 have none."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from actors.checkpoints.checkpoint_folders import is_folder_name
from actors.storage.uris import S3_SCHEME
from models.demo_cache import SCHEME
from schemas.errors import SpecError
from schemas.spec.job_spec import ModelSpec

_NOT_ON_THE_HUB = (SCHEME, S3_SCHEME, "file://")


def refuse_idle_revisions(name: str, model: ModelSpec) -> None:
    """Raise SpecError if the model `name`, or what it has by name, has a revision and is not on the Hub.

    A name that is neither a path here nor a repository is not judged: it is not found later.
    """
    for key, path, revision in _sources(f"models.{name}", model):
        if revision is not None and _is_local(path):
            raise SpecError(
                f"{key}.revision: {path} is not a repository of the Hub, and nothing else has revisions; "
                "leave `revision` out. darkroom compares the content of such files itself"
            )


def _sources(key: str, model: ModelSpec) -> Iterator[tuple[str, str, str | None]]:
    """The key, path and revision of the checkpoint, and of each of its components and adapters."""
    yield key, model.checkpoint, model.revision
    for section in ("components", "loras", "controlnets", "ip_adapters", "embeddings"):
        for name, source in getattr(model, section).items():
            yield f"{key}.{section}.{name}", source.path, source.revision
    for name, adapter in model.ip_adapters.items():
        encoder = adapter.image_encoder
        if not isinstance(encoder, str):
            yield f"{key}.ip_adapters.{name}.image_encoder", encoder.path, encoder.revision


def _is_local(path: str) -> bool:
    if path.startswith(_NOT_ON_THE_HUB) or is_folder_name(path):
        return True
    with suppress(OSError, ValueError):  # A name that no file can have is not judged here.
        return Path(path).exists()
    return False
