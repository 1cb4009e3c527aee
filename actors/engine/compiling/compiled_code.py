"""Where a machine keeps compiled code, for all workers of the machine and for later jobs."""

import os
import re
from pathlib import Path

import torch

from models.caches import cache_folder
from schemas import __version__

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that names torch's folder for compiled code; workers may share one."""


def keep_compiled_code(device: torch.device) -> None:
    """Have torch keep compiled code in darkroom's folder, unless the environment names another one."""
    os.environ.setdefault(VARIABLE, str(compiled_folder(device)))


def compiled_folder(device: torch.device) -> Path:
    """The folder of the code for this device, made by this version of torch and of darkroom.

    torch itself looks code up by its own sources, the GPU and the graph. By the names of these folders one
    sees which of them are of no more use.
    """
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu {torch.backends.cpu.get_cpu_capability()}"
    )
    key = re.sub(r"[^\w.+-]+", "-", f"torch-{torch.__version__} darkroom-{__version__} {name}")
    return cache_folder() / "compiled" / key
