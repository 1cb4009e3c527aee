"""A real S3 server for tests: SeaweedFS, which honours conditional writes."""

import ctypes
import http.client
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import pytest

from tests.support.running import free_ports

ACCESS_KEY = "darkroom-tests"
SECRET_KEY = "not-a-secret"
READY_WITHIN_S = 300.0
_PR_SET_PDEATHSIG = 1


class S3Server:
    """`with S3Server() as s3:` starts a server with empty buckets, which is removed at the end of the block.

    `env` has the environment variables with which a process reaches it.
    """

    buckets = ("inp", "out")

    def __enter__(self) -> "S3Server":
        for _ in range(5):
            if self._start():
                return self
            self._stop()
        raise RuntimeError("SeaweedFS did not start; the end of its log:\n" + self._log)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def kill(self) -> None:
        """End the server with SIGKILL, as when its machine fails; stored objects remain."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def restart(self) -> None:
        """Start a killed server again, at the same address."""
        if not self._launch():
            raise RuntimeError("SeaweedFS did not start again")

    def _start(self) -> bool:
        self._folder = Path(tempfile.mkdtemp(prefix="darkroom-s3-"))
        self._ports = free_ports(5)
        self.port = self._ports[0]
        return self._launch()

    def _launch(self) -> bool:
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                self._command(self._ports),
                cwd=self._folder,
                env={**os.environ, "GOMEMLIMIT": "300MiB"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return self._wait_until_ready()

    def _command(self, ports: list[int]) -> list[str]:
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        config = self._folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        s3, master, volume, filer, admin = ports
        options = {
            "dir": self._folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": config,
            "bucket": ",".join(self.buckets),
            "s3.port": s3,
            "master.port": master,
            "volume.port": volume,
            "filer.port": filer,
            "admin.port": admin,
            "master.telemetry": "false",
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        }
        return [_weed(), "mini", *(f"-{name}={value}" for name, value in options.items())]

    def _wait_until_ready(self) -> bool:
        give_up = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < give_up and self._process.poll() is None:
            if self._is_healthy():
                return True
            time.sleep(0.05)
        return False

    def _is_healthy(self) -> bool:
        # The server reports healthy before it has created its buckets, which are folders of its filer.
        filer = self._ports[3]
        return self._answers(self.port, "/healthz") and all(
            self._answers(filer, f"/buckets/{bucket}/") for bucket in self.buckets
        )

    @staticmethod
    def _answers(port: int, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        self.kill()
        self._log = (self._folder / "log").read_text(errors="replace")[-2000:]
        shutil.rmtree(self._folder, ignore_errors=True)


def skip_without_server() -> None:
    """Skip the test on a machine for which SeaweedFS is not built."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the S3 server for tests is built for Linux on x86_64 only")


def _weed() -> str:
    """The path of the server's binary, which its PyPI package puts beside the interpreter."""
    binary = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if binary is None:
        raise FileNotFoundError("`weed` is not installed: pip install '.[test]'")
    return binary


def _die_with_parent() -> None:
    """Let Linux kill this process when the test process is killed and cannot clean up."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
