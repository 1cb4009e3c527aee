"""The class that becomes a Ray actor."""

import socket

import ray

from actors.worker_process import WorkerProcess


class RayWorker(WorkerProcess):
    """A worker's process that knows on which of Ray's machines it runs."""

    def born(self) -> tuple[str, str]:
        """Ray's id of the machine, and the machine's host name: the process has started."""
        return ray.get_runtime_context().get_node_id(), socket.gethostname()
