"""What a process may use: the limits of its container count where they are lower than the machine's."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from actors import machine_limits

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
CPUS = 16
NO_LIMIT_V1 = 9223372036854771712
"""What version 1 says where nobody set a limit."""


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for /sys/fs/cgroup, on a machine of 16 CPUs."""
    monkeypatch.setattr(machine_limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine_limits, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "cpu_count", lambda: CPUS)
    return tmp_path


@pytest.mark.parametrize(
    ("own", "files", "memory", "num_cpus"),
    [
        ("0::/\n", {}, MACHINE, CPUS),
        # Version 2: the limits of the group itself, and of those around it.
        ("0::/\n", {"memory.max": "1000000", "cpu.max": "250000 100000"}, 1_000_000, 2),
        ("0::/\n", {"memory.max": "max", "cpu.max": "max 100000"}, MACHINE, CPUS),
        ("0::/\n", {"cpu.max": "50000 100000"}, MACHINE, 1),
        ("0::/\n", {"memory.max": str(2 * MACHINE), "cpu.max": "6400000 100000"}, MACHINE, CPUS),
        ("0::/a/b\n", {"a/b/memory.max": "3000", "a/memory.max": "2000", "memory.max": "9000"}, 2000, CPUS),
        ("0::/a/b\n", {"c/memory.max": "1"}, MACHINE, CPUS),
        # Version 1.
        (
            "9:memory:/x\n8:cpu:/x\n",
            {
                "memory/memory.limit_in_bytes": "5000",
                "cpu/cpu.cfs_quota_us": "300000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            *(5000, 3),
        ),
        (
            "9:memory:/x\n",
            {
                "memory/memory.limit_in_bytes": str(NO_LIMIT_V1),
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
            },
            *(MACHINE, CPUS),
        ),
    ],
)
def test_the_lowest_limit_counts(
    limits: Path, own: str, files: Mapping[str, str], memory: int, num_cpus: int
) -> None:
    """Of the machine, of the process's control group and of those around it."""
    (limits / "own").write_text(own)
    for name, text in files.items():
        path = limits / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    assert machine_limits.memory_bytes() == memory
    assert machine_limits.num_cpus() == num_cpus


@pytest.mark.usefixtures("limits")
def test_a_system_without_control_groups_has_no_other_limit() -> None:
    """macOS has none."""
    assert (machine_limits.memory_bytes(), machine_limits.num_cpus()) == (MACHINE, CPUS)


def test_the_gpus_are_those_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the process may see; none without the driver's program, or if it fails."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA H200'\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    all_of_them = machine_limits.gpu_names()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    one = machine_limits.gpu_names()
    program.write_text("#!/bin/sh\nexit 9\n")

    assert (all_of_them, one) == (["NVIDIA H200", "NVIDIA H200"], ["NVIDIA H200"])
    assert machine_limits.gpu_names() == []
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert machine_limits.gpu_names() == []
