"""The memory and the CPUs that this process may use: those of the machine, or of its container if less."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
CPU_INFO = Path("/proc/cpuinfo")


def memory_bytes() -> int:
    """The memory that all processes here may use together, in bytes."""
    limits = [
        int(text)
        for text in _settings("memory.max", "memory/memory.limit_in_bytes")
        if text.isdigit()  # "max" is no limit
    ]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def num_cpus() -> int:
    """The CPUs that all processes here may use together, at least 1."""
    quotas = [tuple(text.split()) for text in _settings("cpu.max")]
    quotas += zip(_settings("cpu/cpu.cfs_quota_us"), _settings("cpu/cpu.cfs_period_us"), strict=True)
    # Without a limit, the quota is "max" or -1.
    limits = [int(quota) // int(period) for quota, period in quotas if quota.isdigit()]
    return max(1, min([os.cpu_count() or 1, *limits]))


def cpu_name() -> str:
    """What the processor calls itself, such as `AMD EPYC 9474F 48-Core Processor`."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """What the driver calls each NVIDIA GPU that this process may use, without importing torch."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    names = [line.strip() for line in listed.splitlines() if line.strip()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names if visible is None else names[: len([each for each in visible.split(",") if each])]


def _settings(*names: str) -> Iterator[str]:
    """The values of these settings of the control groups around this process, as far as they exist."""
    for group in _groups():
        for name in names:
            try:
                yield (group / name).read_text(encoding="ascii").strip()
            except OSError:
                continue


def _groups() -> list[Path]:
    """The folders of this process's control group and of those around it."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    # Version 2 has the one line `0::/path`. In a container the path is `/`, as is that of version 1 here.
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = CGROUPS / own
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(CGROUPS))]
