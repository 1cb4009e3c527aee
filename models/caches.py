"""The folder of this machine in which darkroom keeps what it need not make twice."""

import os
from importlib.metadata import version
from pathlib import Path

from schemas import __version__


def cache_folder() -> Path:
    """The folder that DARKROOM_CACHE names, or `darkroom` in the user's cache folder; it need not exist."""
    folder = os.environ.get("DARKROOM_CACHE")
    if folder:
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "darkroom"


def compiled_folder() -> Path:
    """The folder of the code that this version of darkroom and torch's compile; it need not exist.

    torch looks code up in it by its own sources, the GPU and the graph, so all workers of a machine share it.
    """
    return cache_folder() / "compiled" / f"torch-{version('torch')}-darkroom-{__version__}"
