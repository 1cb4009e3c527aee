"""The folder of this machine in which darkroom keeps what it need not make twice."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder that DARKROOM_CACHE names, or `darkroom` in the user's cache folder; it need not exist."""
    folder = os.environ.get("DARKROOM_CACHE")
    if folder:
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "darkroom"
