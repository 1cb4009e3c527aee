"""A recorder of side effects, with which tests say what comes before what."""

import builtins
import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any
from unittest.mock import patch

import pytest

from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Buffer


def record_system_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list to which calls of fsync, link and replace are added from now on: `fsync file`, `link` ..."""
    events: list[str] = []

    def recorded(name: str) -> None:
        own = getattr(os, name)

        def call(*arguments: object) -> object:
            result = own(*arguments)
            events.append(f"fsync {_kind(arguments[0])}" if name == "fsync" else name)
            return result

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "replace"):
        recorded(name)
    return events


def record_models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list to which is added from now on which folder diffusers loads, and whose UNet is freed.

    `load sd` is added before anything is loaded, and `free sd` when the weights have left the memory.
    """
    # Imported here because it imports torch, which most tests of side effects do not need.
    from diffusers import DiffusionPipeline

    events: list[str] = []
    own = DiffusionPipeline.from_pretrained.__func__

    def from_pretrained(cls: type, folder: object, **arguments: object) -> object:
        name = PurePath(str(folder)).name
        events.append(f"load {name}")
        pipeline = own(cls, folder, **arguments)
        weakref.finalize(pipeline.unet, events.append, f"free {name}")
        return pipeline

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    return events


def _kind(descriptor: object) -> str:
    assert isinstance(descriptor, int)
    return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"


class RecordingStorage(LocalStorage):
    """A local disk that notes the names of the objects that it writes, in order."""

    def __init__(self, *, temp_dir: str) -> None:
        super().__init__(temp_dir=temp_dir)
        self.written: list[str] = []

    def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
        created = super().create(uri, data, metadata)
        self.written.append(PurePath(uri).name)
        return created

    def replace(self, uri: str, data: bytes) -> None:
        super().replace(uri, data)
        self.written.append(PurePath(uri).name)


@contextmanager
def recorded_opens(folder: Path) -> Iterator[list[str]]:
    """The list of the files below `folder` that are opened in the block, in order."""
    opened: list[str] = []
    own = builtins.open

    def noting(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(file).startswith(f"{folder}/"):
            opened.append(str(file))
        return own(file, *arguments, **options)

    with patch.object(builtins, "open", noting):
        yield opened
