"""One trial: the mistake is planted in a copy of the repository, and its tests run there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.mutants.planted import ROOT, Mistake

TIME_LIMIT_S = 300
"""Tests that take longer have noticed the mistake: it made something wait forever."""
FAILED = 1
"""The exit status of pytest if a test has failed."""
BROKEN = 2
"""Its exit status if a test file could not be imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the tests said."""

    noticed_by: str
    """The first test that failed; empty if none did."""
    output: str
    """What pytest printed."""


class Copy:
    """A copy of the working tree, in which mistakes are planted one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        listed = subprocess.check_output(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
        )
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    def try_out(self, mistake: Mistake) -> Verdict:
        """Plant the mistake, run its tests, and restore the file."""
        path = self._folder / mistake.file
        source = path.read_text(encoding="utf-8")
        path.write_text(mistake.planted(source), encoding="utf-8")
        try:
            return self.run(mistake.tests)
        finally:
            path.write_text(source, encoding="utf-8")

    def run(self, tests: Sequence[str]) -> Verdict:
        """Run these tests until the first one fails; RuntimeError if pytest itself cannot run them."""
        # With PYTHONPATH, programs that the tests start elsewhere use the copy too. Without bytecode files no
        # process can use an old one.
        env = os.environ | {"PYTHONPATH": str(self._folder), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-rfE", "-p", "no:cacheprovider", *tests]
        try:
            run = subprocess.run(
                command, cwd=self._folder, env=env, capture_output=True, text=True, timeout=TIME_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return Verdict(noticed_by=f"the time limit of {TIME_LIMIT_S} s", output="")
        output = run.stdout + run.stderr
        if run.returncode not in (0, FAILED, BROKEN):
            raise RuntimeError(f"pytest ended with {run.returncode}: {' '.join(command)}\n{output}")
        return Verdict(noticed_by=_first_failed(run.stdout) if run.returncode else "", output=output)


def _first_failed(output: str) -> str:
    """The node id of the first test in pytest's summary of failures."""
    for line in output.splitlines():
        status, _, rest = line.partition(" ")
        if status in ("FAILED", "ERROR") and rest.startswith("tests/"):
            return rest.partition(" - ")[0]
    return "a test that pytest does not name"
