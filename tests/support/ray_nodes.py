"""A Ray cluster of several nodes on this machine, whose nodes a test can add, pause and kill."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from models.caches import cache_folder
from tests.support.running import ABSENT, ROOT, Started, free_ports, wait_until

RAY = ("-m", "ray.scripts.scripts")
MAX_STARTS = 3
_STARTED = "Ray runtime started"
_TOO_LATE = "The current node timed out during startup"
"""What Ray 2.60 says after 30 s, which a machine that does much else may need: then it is tried again."""
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

_HEAD: dict[str, Any] = {"resources": {}, "max_workers": 0}
_NOTHING_TO_DO: dict[str, Any] = {
    **{f"{kind}_commands": [] for kind in ("setup", "head_setup", "worker_setup", "initialization")},
    **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
    "cluster_synced_files": [],
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "auth": {"ssh_user": "nobody"},
    "docker": {},
}
"""What the autoscaler wants to know of machines that it sets up by SSH; there are none."""


class RayNodes:
    """`with RayNodes(**env) as nodes:` starts a head node, which has no CPUs for workers; they see `env`."""

    def __init__(
        self, head_cpus: int = 0, node_types: Mapping[str, Mapping[str, Any]] | None = None, **env: str
    ) -> None:
        """With `node_types`, Ray's own autoscaler runs on the head and starts such nodes on this machine."""
        # Workers import the tests' own engines.
        self._env = {"PYTHONPATH": os.pathsep.join(map(str, (ABSENT, ROOT)))} | env
        self._head_cpus = head_cpus
        self._node_types = node_types
        self.started: list[Started] = []
        """The head node and all nodes that were added."""

    def __enter__(self) -> "RayNodes":
        with ExitStack() as stack:
            self._folder = tempfile.mkdtemp(prefix="darkroom-ray-")
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._port, client_port = free_ports(2)
            self._running = stack.enter_context(ExitStack())
            head = ("--head", "--num-cpus", self._head_cpus, "--num-gpus", 0, "--temp-dir", self._folder)
            ports = ("--port", self._port, "--ray-client-server-port", client_port)
            autoscaler, env = self._autoscaler() if self._node_types else (("--no-monitor",), {})
            self._start(
                *(*head, *ports, "--include-dashboard=false", *autoscaler), **_DEAD_IS_SEEN_SOON, **env
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def env(self) -> dict[str, str]:
        """The environment of a driver that uses this cluster."""
        # The home folder is that of the head, where `ray up` puts the autoscaler's configuration. The demo
        # checkpoints stay where they are.
        home = {"HOME": self._folder, "DARKROOM_CACHE": str(cache_folder())} if self._node_types else {}
        return {"RAY_ADDRESS": f"127.0.0.1:{self._port}"} | home

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

    def _autoscaler(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """The options and the environment of a head with an autoscaler."""
        provider = {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{self._port}",
            "disable_node_updaters": True,
        }
        config = {
            "cluster_name": "test",
            "provider": provider,
            "max_workers": 10,
            "upscaling_speed": 10,
            "idle_timeout_minutes": 0.05,
            "head_node_type": "ray.head.default",
            "available_node_types": {
                name: {"node_config": {}, "min_workers": 0, **node_type}
                for name, node_type in {**self._node_types, "ray.head.default": _HEAD}.items()
            },
        }
        path = Path(self._folder, "ray_bootstrap_config.yaml")
        path.write_text(json.dumps(config | _NOTHING_TO_DO), encoding="utf-8")
        # `ray up` sets the node type too. The autoscaler looks once a second instead of every five.
        env = {"RAY_NODE_TYPE_NAME": "ray.head.default", "RAY_FAKE_CLUSTER": "1"}
        env |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
        return ("--autoscaling-config", str(path)), env

    def _start(self, *options: object, **env: str) -> Started:
        start = ("start", "--block", "--dashboard-agent-listen-port", 0, "--include-log-monitor=false")
        for _ in range(MAX_STARTS):
            node = self._running.enter_context(Started(*RAY, *start, *options, **self._env | env))
            wait_until(lambda node=node: not node.is_alive or _STARTED in node.out())
            if _STARTED in node.out():
                self.started.append(node)
                return node
            assert _TOO_LATE in node.err(), node.err()
            node.kill_all()
        raise AssertionError(node.err())
