"""Side effects, recorded, so that tests say what comes before what; and drivers killed before one of them."""

import builtins
import json
import os
import shutil
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any
from unittest.mock import patch

import pytest

from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Buffer
from schemas.output_layout import LEASE

NOBODY = 2**31 - 1
"""The id of a process that no machine has."""


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


class KilledError(Exception):
    """The process is killed: it writes nothing more."""


class Executioner:
    """Kills the driver and its workers before one of their writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._writes_left: float = float("inf")
        """How many writes are still done."""
        for name in ("create", "replace", "exchange", "delete"):
            monkeypatch.setattr(LocalStorage, name, self._limited(getattr(LocalStorage, name)))

    def _limited(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*arguments: Any, **options: Any) -> Any:
            if self._writes_left <= 0:
                raise KilledError
            self._writes_left -= 1
            return write(*arguments, **options)

        return limited

    def kills(self, output: Path, command: Callable[[], object], num_writes: int) -> bool:
        """Whether the command, which writes to this output, is killed after this number of writes."""
        self._writes_left = num_writes
        try:
            command()
            return False
        except Exception:
            # Whatever becomes of the death in a process that goes on.
            if self._writes_left:
                raise
            return True
        finally:
            self._writes_left = float("inf")
            _bury(output)

    def killing_at_each_write(
        self, output: Path, command: Callable[[], object], *, least: int
    ) -> Iterator[None]:
        """The output as it was before the command, and in which the command was killed before its n-th write.

        The last time it has come to its end. `least`: how many writes it has at least.
        """
        before, num_writes, is_killed = output.with_name("before"), 0, True
        shutil.copytree(output, before)
        while is_killed:
            shutil.rmtree(output)
            shutil.copytree(before, output)
            is_killed = self.kills(output, command, num_writes)
            yield
            num_writes += 1
        assert num_writes > least


def _bury(output: Path) -> None:
    """Make the lease that of a process which is dead."""
    lease = json.loads((output / LEASE).read_text())
    (output / LEASE).write_text(json.dumps(lease | {"pid": NOBODY}))
