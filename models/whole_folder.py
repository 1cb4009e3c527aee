"""Checkpoints that are written completely or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import SpecError


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary path; the folder that the block creates there becomes `folder` at the end of the block.

    Raises SpecError if `folder` is a file, or is not empty.
    """
    refuse_used(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        unfinished = Path(scratch) / "checkpoint"
        yield unfinished
        try:
            os.rename(unfinished, folder)
        except OSError:
            refuse_used(folder)
            raise


def refuse_used(folder: Path) -> None:
    """Raise SpecError if the folder is a file, or is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder} already exists; choose a new folder for the demo checkpoint")
