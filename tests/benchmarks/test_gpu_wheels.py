"""benchmarks/gpu-wheels.txt has what a machine with torch and transformers lacks."""

import subprocess
import sys

from tests.support.running import ROOT

WHEELS = ROOT / "benchmarks" / "gpu-wheels.txt"

WITHOUT_THE_REST = """
import re, sys
from importlib import metadata

def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()

def with_needs(names):
    known, waiting = set(), [*names]
    while waiting:
        name = canonical(waiting.pop())
        if name in known:
            continue
        known.add(name)
        try:
            needs = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue
        waiting += [re.match(r"[\\w.-]+", need)[0] for need in needs if "extra ==" not in need]
    return known

distributions = with_needs(["torch", "transformers", "pyarrow", "numpy", "pillow"]) | set(sys.argv[1:])
modules = {
    module
    for module, names in metadata.packages_distributions().items()
    if not {canonical(name) for name in names} & distributions
} - {"schemas", "models", "actors", "jobs", "demo", "benchmarks", "tools", "tests"}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in modules else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

def from_name(name, known=metadata.Distribution.from_name):
    if canonical(name) not in distributions:
        raise metadata.PackageNotFoundError(name)
    return known(name)

assert {"ray", "s3fs", "scipy", "accelerate"} <= modules, modules
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
metadata.Distribution.from_name = from_name

from benchmarks import gpu
from benchmarks.parity import device_checks, faulty_worker
gpu.main(["--device", "cpu", "--tiny", "--budget-s", "0"])
print("missed:", *sorted(modules & set(sys.modules)))
"""


def listed() -> list[str]:
    lines = WHEELS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_wheels_are_of_the_tested_versions() -> None:
    """As constraints.txt pins them."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()

    assert listed()
    assert set(listed()) <= set(pinned)


def test_a_machine_without_ray_runs_the_benchmark_with_the_wheels_alone() -> None:
    """Neither an import nor a look-up of a version asks for anything else, also not the check's."""
    names = [line.partition("==")[0].replace("_", "-") for line in listed()]

    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_REST, *names], cwd=ROOT, capture_output=True, text=True
    )

    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "left out: the budget is spent" in ended.stdout
    assert ended.stdout.endswith("missed:\n")
