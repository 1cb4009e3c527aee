"""The machines of a Ray cluster: those that are there, and those that its autoscaler can start."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
import yaml

from jobs.fleet.cluster import is_own

Resources = Mapping[str, float]
"""Amounts by Ray's names: `CPU`, `GPU`."""

_HEAD = "node:__internal_head__"
"""The resource by which Ray 2.60 marks the head."""
_NODE_GROUP = "ray.io/node-group"
"""The label with the node type, which machines have if an autoscaler of Ray 2.60 or KubeRay starts them."""
_CONFIG = "~/ray_bootstrap_config.yaml"
"""Where `ray up` puts the cluster's configuration on the head, where the driver of a Ray job runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """A type of machine that the autoscaler can start."""

    resources: Resources
    max_count: float
    """Machines of this type at any time; may be infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """The machines on which a job's workers may be placed, now and later."""

    present: Mapping[str, Resources]
    """Those that are alive, by Ray's ids."""
    head: str = ""
    """Ray's id of the head of a cluster with an autoscaler: it runs the cluster and gets no workers."""
    to_come: Sequence[NodeType] | None = ()
    """The types that the autoscaler can start, if there is one; None if Ray does not tell them."""
    max_count: float = math.inf
    """Machines of all types together at any time."""

    @property
    def sizes(self) -> list[Resources]:
        """The resources of every machine that is there and of every type that may come."""
        return [*self.present.values(), *(node_type.resources for node_type in self.to_come or ())]


def find_machines() -> Machines:
    """The machines of the Ray cluster to which this process is connected."""
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    present = {node_id: node["Resources"] for node_id, node in alive.items()}
    heads = [node_id for node_id, resources in present.items() if _HEAD in resources]
    head_type = alive[heads[0]]["Labels"].get(_NODE_GROUP) if heads and not is_own() else None
    if head_type is None:
        return Machines(present=present)
    del present[heads[0]]
    types, max_count = _told_by_ray(head_type) or _told_by_config(head_type) or (None, math.inf)
    to_come = types and [node_type for node_type in types if node_type.max_count]
    return Machines(present=present, head=heads[0], to_come=to_come, max_count=max_count)


def _told_by_ray(head_type: str) -> tuple[list[NodeType], float] | None:
    """What the autoscaler has reported to Ray; those of open-source Ray 2.60 report nothing."""
    # Ray Data and Ray Train read it this way too: there is no public function.
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    types = [
        NodeType(
            resources=dict(group.resources), max_count=group.max_count if group.max_count >= 0 else math.inf
        )
        for group in groups
        if group.name != head_type
    ]
    return (types, math.inf) if groups else None


def _told_by_config(head_type: str) -> tuple[list[NodeType], float] | None:
    """What the configuration of `ray up` says, if this machine is the head of that cluster."""
    path = Path(_CONFIG).expanduser()
    if not path.is_file():
        return None
    config = _read_config(path, path.stat().st_mtime_ns)
    if config.get("head_node_type") != head_type:
        return None
    max_count = config.get("max_workers", math.inf)
    types = [
        NodeType(resources=node_type.get("resources", {}), max_count=node_type.get("max_workers", max_count))
        for name, node_type in config["available_node_types"].items()
        if name != head_type
    ]
    return types, max_count


@lru_cache(maxsize=1)
def _read_config(path: Path, changed_ns: int) -> dict[str, Any]:
    """The configuration file, which is read again only when it has changed."""
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config
