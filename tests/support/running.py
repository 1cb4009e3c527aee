"""Run darkroom as its users do, in separate processes, and leave none of them behind."""

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import tests
from jobs.__main__ import main
from jobs.verification.verify import verify_output

ROOT = Path(tests.__file__).parent.parent
POLL_S = 0.05
PATIENCE_S = 600
"""How long a test waits for what must happen: on a busy machine everything takes many times as long."""
ABSENT = ROOT / "tests" / "support" / "absent"
"""A folder with what programs under test find in place of packages that tests alone need."""
MARK = "DARKROOM_TEST"
"""The environment variable by which the processes of a program are recognised."""

Record = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A program that has ended."""

    code: int
    out: str
    """Standard output."""
    err: str
    """Standard error."""


class Started:
    """`with Started("-m", "jobs", "run", ...) as run:` runs a Python program.

    It and all its children are killed at the end of the block. It has a session of its own, as a terminal's
    foreground job has a process group.
    """

    def __init__(
        self, *arguments: object, cwd: Path = ROOT, python: str = sys.executable, **env: str
    ) -> None:
        self._mark = uuid.uuid4().hex
        # Files, not pipes: a process that outlives the program would keep the reader of a pipe waiting.
        self._out, self._err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, *map(str, arguments)],
            cwd=cwd,
            env=clean_env(python, **{MARK: self._mark}, **env),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    def __enter__(self) -> "Started":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_all()
        self._out.close()
        self._err.close()

    def signal(self, number: int) -> None:
        """Send a signal to the program alone."""
        self._process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """SIGINT to the whole process group, as a terminal sends it."""
        os.killpg(self._process.pid, signal.SIGINT)

    @property
    def is_alive(self) -> bool:
        """Whether the program itself has not ended."""
        return self._process.poll() is None

    def wait(self, timeout_s: float = PATIENCE_S) -> Finished:
        """Wait for the program to end, and return its exit code and its output."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {timeout_s} s:\n{self._text()}") from error
        return Finished(code=code, out=_content(self._out), err=_content(self._err))

    def wait_until(self, condition: Callable[[], _T], timeout_s: float = PATIENCE_S) -> _T:
        """Wait while the program runs, and return the first true value of the condition."""
        give_up = time.monotonic() + timeout_s
        while not (value := condition()):
            assert self._process.poll() is None, f"the program ended too early:\n{self._text()}"
            assert time.monotonic() < give_up, f"not true after {timeout_s} s:\n{self._text()}"
            time.sleep(POLL_S)
        return value

    def out(self) -> str:
        """The program's standard output so far."""
        return _content_so_far(self._out)

    def err(self) -> str:
        """The program's standard error so far."""
        return _content_so_far(self._err)

    def pids(self, name: str = "") -> list[int]:
        """The ids of the program and its living descendants whose command line contains `name`."""
        return [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if (not name or name in _read(f"/proc/{pid}/cmdline")) and self._is_ours(pid)
        ]

    def kill_all(self) -> None:
        """Kill all the processes with SIGKILL, again and again until no new one appears."""
        wait_until(self._kill_round)
        self._process.wait()

    def wait_until_gone(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the last of the processes has ended by itself."""
        wait_until(lambda: not self.pids(), timeout_s)

    def _kill_round(self) -> bool:
        pids = self.pids()
        for pid in pids:
            kill(pid)
        return not pids

    def _is_ours(self, pid: int) -> bool:
        # pid (name) state parent group session ...
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if not fields or fields[0] == "Z":
            return False
        # Ray's job supervisors start a session of their own; its workers overwrite their environment.
        return int(fields[3]) == self._process.pid or self._mark in _read(f"/proc/{pid}/environ")

    def _text(self) -> str:
        return _content(self._out) + _content(self._err)


def darkroom(*arguments: object, cwd: Path = ROOT, **env: str) -> Finished:
    """Run `python -m jobs` with these arguments until it ends."""
    with Started("-m", "jobs", *arguments, cwd=cwd, **env) as started:
        return started.wait()


def darkroom_here(*arguments: object, cwd: Path = ROOT, **env: str) -> Finished:
    """Do in this process what `python -m jobs` does: to start another one takes a second of a processor."""
    encoding = env.get("PYTHONIOENCODING", "utf-8")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in ("out", "err"))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["darkroom", *map(str, arguments)])
        for name, value in clean_env(sys.executable, **env).items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
    return Finished(code=int(ended.value.code or 0), out=_content(out), err=_content(err))


def start_with(engine: str, spec: Path, **env: str) -> Started:
    """Start what `darkroom run SPEC` does, with an engine of tests.support.engines."""
    return Started("-m", "tests.support.engines", engine, spec, **env)


def run_with(engine: str, spec: Path, **env: str) -> Finished:
    """Do what `darkroom run SPEC` does, with an engine of tests.support.engines, to its end."""
    with start_with(engine, spec, **env) as started:
        return started.wait()


def assert_refused(finished: Finished, *texts: str) -> None:
    """Check that a command ended with exit code 2 and one line that has these texts."""
    assert finished.code == 2
    assert "Traceback" not in finished.err
    said = [line for line in finished.err.splitlines() if line.startswith("darkroom: ")]
    assert len(said) == 1
    assert all(text in said[0] for text in texts), said


def clean_env(python: str, **env: str) -> dict[str, str]:
    """This process's environment without Ray's variables and without a GPU; `python` is first in its PATH."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    fixed = {
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        # Without this, Ray would write a token file into the home folder.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray 2.60's workers have a niceness of 15: beside any other process they would hardly run.
        "RAY_worker_niceness": "0",
        # Ray starts a Python for each CPU in advance. On a cluster that a driver joins, none of these would
        # become a worker of darkroom's, because they lack the driver's code.
        "RAY_prestart_worker_first_driver": "0",
    }
    python_path = os.pathsep.join(filter(None, (str(ABSENT), os.environ.get("PYTHONPATH"))))
    return inherited | fixed | {"PYTHONPATH": python_path} | env


_FIRST_PORT, _END_OF_PORTS, _TWIN = 20_000, 22_768, 10_000


def free_ports(count: int) -> list[int]:
    """Ports on which no process listens, neither there nor on the port 10,000 higher, SeaweedFS's for gRPC.

    They are above those of Ray's workers (10002 to 19999) and below those that Linux gives to connections
    (from 32768), so nobody gets one by chance before its server listens. No two test processes share one.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    step = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = range(_FIRST_PORT + number, _END_OF_PORTS, step)
    candidates = random.SystemRandom().sample(own, len(own))
    free = (port for port in candidates if port not in _given and _is_free(port) and _is_free(port + _TWIN))
    ports = [*islice(free, count)]
    assert len(ports) == count, "too few ports are free"
    _given.update(ports)
    return ports


_given: set[int] = set()
"""The ports that this process was given: a server may not listen yet, or have to start again."""


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("", port))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Wait until the condition is true."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"not true after {timeout_s} s"
        time.sleep(POLL_S)


def kill(pid: int) -> None:
    """Kill the process with SIGKILL, unless it has already ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def text_rows(count: int) -> list[Record]:
    """Rows that have only an id and a prompt."""
    return [{"row_id": f"row-{i:04d}", "prompt": f"a picture of the number {i}"} for i in range(count)]


def write_rows(path: Path, rows: Sequence[Record], types: Mapping[str, pa.DataType] | None = None) -> Path:
    """Write the rows to a Parquet file, and return its path; `types` are those of some columns."""
    names = dict.fromkeys(name for row in rows for name in row)
    known_types = types or {}
    columns = {name: pa.array([row.get(name) for row in rows], known_types.get(name)) for name in names}
    pq.write_table(pa.table(columns), path)
    return path


def write_spec(path: Path, rows: object, output: object, /, **sections: Any) -> Path:
    """Write a spec with the demo checkpoint and two steps per image, and return its path.

    `sections` replace or add whole sections.
    """
    spec: Record = {
        "version": 1,
        "name": "test",
        "input": {"path": str(rows)},
        "models": {"sd": {"checkpoint": "demo:sd"}},
        "routes": {
            "text2img": {"model": "sd", "num_inference_steps": 2},
            "img2img": {"model": "sd", "num_inference_steps": 2, "strength": 1.0},
        },
        "default_route": "text2img",
        "output": {"path": str(output)},
        "batching": {"shard_rows": 8},
        "workers": {"num": 2},
    }
    path.write_text(json.dumps(spec | sections), encoding="utf-8")
    return path


def parts(output: Path) -> list[Path]:
    """The files in an output's `data/`, in the order of their names."""
    return sorted((output / "data").iterdir()) if (output / "data").exists() else []


def output_rows(output: Path) -> list[Record]:
    """The rows of all parts, in the order of the parts' names."""
    return [row for part in parts(output) for row in pq.read_table(part).to_pylist()]


def row_ids(output: Path) -> list[str]:
    """The row_id of every row with an outcome, sorted; a row with two outcomes appears twice."""
    return sorted(row["row_id"] for row in output_rows(output) if row["image_index"] == 0)


def assert_whole(output: Path, rows: Sequence[Record]) -> None:
    """Check that every row has one outcome and that `verify` accepts the output."""
    verify_output(str(output), Console(file=io.StringIO()))
    assert row_ids(output) == [row["row_id"] for row in rows]


def _content(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def _content_so_far(file: Any) -> str:
    """The file's content so far, read without moving the file position at which the program writes."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
