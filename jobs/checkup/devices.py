"""Whether torch can compute on this machine's GPUs."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jobs.checkup.facts import NoFactsError, facts_of
from jobs.checkup.finding import Finding, ok, problem, warning
from schemas.wording.amounts import counted, size_text

DRIVER_WITHIN_S = 8.0
_CUDA_BUILD = "install the CUDA build of the same torch (https://pytorch.org/get-started/locally)"
SMALL_BYTES = 8_000_000_000
"""A GPU with less memory holds Stable Diffusion 1.5 in small batches only, and not XL."""

Facts = Mapping[str, Any]


def nvidia_gpus() -> list[str]:
    """The GPUs that NVIDIA's driver sees, each with the driver's version; empty where there is no driver."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_WITHIN_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def torch_facts() -> Facts:
    """What torch says of this machine; see actors/engine/device_facts.py."""
    return facts_of("actors.engine.device_facts")


def check_devices(
    ask_torch: Callable[[], Facts] = torch_facts, ask_driver: Callable[[], Sequence[str]] = nvidia_gpus
) -> Iterator[Finding]:
    """The GPUs that torch can use, and why it can use none where there are some."""
    gpus = ask_driver()
    try:
        facts = ask_torch()
    except NoFactsError as error:
        yield problem(
            f"torch cannot be imported: {error}. Install it again: pip install --force-reinstall torch"
        )
        return
    build = f"torch {facts['torch']}"
    if facts["devices"]:
        yield ok(f"{build} computes on {counted(len(facts['devices']), 'GPU')}")
        yield from map(_of_device, facts["devices"])
    elif not gpus:
        yield ok(f"{build}; no GPU here, so each worker computes on a CPU")
    elif facts["cuda"] is None:
        yield problem(f"{build} is a build without CUDA, and this machine has {gpus[0]}: {_CUDA_BUILD}")
    else:
        reason = facts["reason"] or "torch.cuda.is_available() is false; is CUDA_VISIBLE_DEVICES set?"
        yield problem(
            f"{build} (CUDA {facts['cuda']}) cannot use this machine's {gpus[0]}: {reason} Update the "
            "driver, or install a build of torch for an older CUDA"
        )


def _of_device(device: Facts) -> Finding:
    text = f"{device['name']}: {size_text(device['free_bytes'])} of {size_text(device['memory_bytes'])} free"
    if device["fault"]:
        return problem(f"{text}; it cannot compute: {device['fault']}. Look at nvidia-smi, or {_CUDA_BUILD}")
    text += ", float16 and bfloat16" if device["bfloat16"] else ", float16 but not bfloat16"
    if device["memory_bytes"] < SMALL_BYTES:
        return warning(f"{text}; little for published checkpoints: lower batching.max_batch_rows")
    if device["free_bytes"] < device["memory_bytes"] / 2:
        return warning(f"{text}; another program uses the rest: nvidia-smi names it")
    return ok(text)
