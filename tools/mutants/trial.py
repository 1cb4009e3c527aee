"""One trial: the mistake is planted in a copy of the repository, and its tests run there.

They run in a process that is forked from this one, which has loaded the large libraries once for all trials.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest

from tools.mutants.planted import ROOT, Mistake

TIME_LIMIT_S = 600.0
"""Tests that take longer have noticed the mistake: it made something wait forever."""
POLL_S = 0.05
LIBRARIES = (
    *("numpy", "PIL.Image", "pyarrow.dataset", "pyarrow.parquet", "pydantic", "ray", "datasets"),
    *("torch", "diffusers", "transformers", "accelerate", "diffusers.loaders", "diffusers.models"),
    *("transformers.models.clip.modeling_clip", "diffusers.pipelines.pipeline_utils"),
)
OPTIONS = (
    # A mistake may make a test wait for ever.
    *("-x", "-rfE", "-p", "no:cacheprovider", "--timeout", "120"),
    # Libraries that are also plugins of pytest are imported before it.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)


def preload() -> None:
    """Import the libraries that most tests need, as tests/conftest.py has them imported."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CI": "1"}
    for library in LIBRARIES:
        import_module(library)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the tests said."""

    noticed_by: str
    """The first test that failed; empty if none did."""
    output: str
    """What pytest printed."""


class Copy:
    """A copy of the working tree, in which one mistake at a time is planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.check_output(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
        )
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    def plant(self, mistake: Mistake) -> None:
        """Plant the mistake in the copy's file."""
        path = self.folder / mistake.file
        path.write_text(mistake.planted(path.read_text(encoding="utf-8")), encoding="utf-8")

    def restore(self, mistake: Mistake) -> None:
        """Make the copy's file as it is in the repository."""
        shutil.copy2(ROOT / mistake.file, self.folder / mistake.file)


class Trial:
    """Tests under way in a copy, until the first of them fails."""

    def __init__(self, copy: Copy, tests: Sequence[str], mistake: Mistake | None = None) -> None:
        self.copy = copy
        self.mistake = mistake
        if mistake:
            copy.plant(mistake)
        self._tests = tests
        self._output: IO[str] = TemporaryFile("w+")  # noqa: SIM115 - closed with the verdict
        self._give_up = time.monotonic() + TIME_LIMIT_S
        sys.stdout.flush()
        self._pid = os.fork()
        if not self._pid:
            self._run_tests()

    def _run_tests(self) -> None:
        """Become a process that runs the tests and ends."""
        os.setsid()
        for descriptor in (1, 2):
            os.dup2(self._output.fileno(), descriptor)
        sys.stdout = sys.stderr = self._output
        os.chdir(self.copy.folder)
        sys.path[0] = str(self.copy.folder)
        for name in [name for name in sys.modules if (ROOT / name.partition(".")[0]).is_dir()]:
            del sys.modules[name]
        # Programs that the tests start use the copy too. No process may use bytecode of another version.
        os.environ |= {"PYTHONPATH": str(self.copy.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        code = int(pytest.ExitCode.INTERNAL_ERROR)
        try:
            code = int(pytest.main([*OPTIONS, *self._tests]))
        except BaseException:  # noqa: BLE001 - the process must end here, whatever it is
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def verdict(self) -> Verdict | None:
        """What the tests said, or None while they run; RuntimeError if pytest itself could not run them."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid and time.monotonic() < self._give_up:
            return None
        if not pid:
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        if self.mistake:
            self.copy.restore(self.mistake)
        self._output.seek(0)
        with self._output:
            output = self._output.read()
        if not pid:
            return Verdict(noticed_by=f"the time limit of {TIME_LIMIT_S:.0f} s", output=output)
        code = os.waitstatus_to_exitcode(status)
        if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
            raise RuntimeError(f"pytest cannot run {' '.join(self._tests)}:\n{output}")
        return Verdict(noticed_by=_first_failed(output) if code else "", output=output)


def wait_for_any(trials: Sequence[Trial]) -> tuple[Trial, Verdict]:
    """The first of the trials that has ended, and its verdict."""
    while True:
        for trial in trials:
            if verdict := trial.verdict():
                return trial, verdict
        time.sleep(POLL_S)


def _first_failed(output: str) -> str:
    """The node id of the first test in pytest's summary of failures."""
    for line in output.splitlines():
        status, _, rest = line.partition(" ")
        if status in ("FAILED", "ERROR") and rest.startswith("tests/"):
            return rest.partition(" - ")[0]
    return "pytest itself, which broke off"
