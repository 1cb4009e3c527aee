"""A Ray cluster of several nodes on this machine, whose nodes a test can add, pause and kill."""

import shutil
import socket
import tempfile
from contextlib import ExitStack
from types import TracebackType

from tests.support.running import ROOT, Started

RAY = ("-m", "ray.scripts.scripts")
WORKER = "ray::RayWorker"
"""What the command line of a worker contains."""
_DEAD_IS_SEEN_SOON = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}
"""Settings with which Ray notices a dead node soon.

A node that only answers slowly still has Ray's usual ten seconds for each check.
"""


class RayNodes:
    """`with RayNodes(**env) as nodes:` starts a head node, which has no CPUs for workers; they see `env`."""

    def __init__(self, head_cpus: int = 0, **env: str) -> None:
        # Workers import the tests' own engines.
        self._env = {"PYTHONPATH": str(ROOT)} | env
        self._head_cpus = head_cpus
        self.started: list[Started] = []
        """The head node and all nodes that were added."""

    def __enter__(self) -> "RayNodes":
        with ExitStack() as stack:
            self._folder = tempfile.mkdtemp(prefix="darkroom-ray-")
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._port, client_port = free_ports(2)
            self._running = stack.enter_context(ExitStack())
            ports = ("--port", self._port, "--ray-client-server-port", client_port)
            head = (
                "--head",
                "--num-cpus",
                self._head_cpus,
                "--include-dashboard=false",
                "--temp-dir",
                self._folder,
            )
            self._start(*head, *ports, "--include-dashboard=false", **_DEAD_IS_SEEN_SOON)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def env(self) -> dict[str, str]:
        """The environment of a driver that uses this cluster."""
        return {"RAY_ADDRESS": f"127.0.0.1:{self._port}"}

    def add(self, num_cpus: int = 1, num_gpus: int = 0, **env: str) -> Started:
        """Add a node, and return its first process, which is the one that Kubernetes would stop.

        Ray believes in its GPUs; a process that asks CUDA sees none.
        """
        size = ("--num-cpus", num_cpus, "--num-gpus", num_gpus)
        if num_gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(num_gpus)))
        return self._start("--address", f"127.0.0.1:{self._port}", *size, **env)

    def workers(self) -> list[int]:
        """The ids of the workers' processes on all nodes."""
        return [pid for node in self.started for pid in node.pids(WORKER)]

    def _start(self, *options: object, **env: str) -> Started:
        started = Started(
            *(*RAY, "start", "--block", "--dashboard-agent-listen-port", 0, *options), **self._env | env
        )
        node = self._running.enter_context(started)
        self.started.append(node)
        node.wait_until(lambda: "Ray runtime started" in node.out())
        return node


def free_ports(count: int) -> list[int]:
    """Ports on which no process listens now."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports
