"""What Ray offers here, as JSON: `python -m jobs.checkup.ray_facts`."""

import json
import sys
from importlib.metadata import version
from typing import Any

from jobs.fleet.cluster import connected, is_own
from jobs.fleet.machines import find_machines
from schemas.errors import DarkroomError


def ray_facts() -> dict[str, Any]:
    """The machines of the Ray that a run would use, or why it would get none."""
    facts: dict[str, Any] = {"version": version("ray"), "is_own": is_own(), "fault": ""}
    try:
        with connected():
            machines = find_machines()
    except DarkroomError as error:
        return facts | {"fault": str(error)}
    present = machines.present.values()
    return facts | {
        "num_machines": len(present),
        "num_cpus": int(sum(each.get("CPU", 0) for each in present)),
        "num_gpus": int(sum(each.get("GPU", 0) for each in present)),
        "can_grow": machines.to_come is None or bool(machines.to_come),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(ray_facts()))
