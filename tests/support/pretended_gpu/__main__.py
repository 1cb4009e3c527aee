"""Prints the tables of docs/batching.md as they are now: `python -m tests.support.pretended_gpu`."""

import tempfile
from pathlib import Path

from tests.support.pretended_gpu.audited_run import audit, models_on_device
from tests.support.pretended_gpu.pretended_cuda import pretended_gpu
from tests.support.pretended_gpu.pretended_jobs import FEATURES, scheduler_rows, spec_on_device, system_rows
from tests.support.pretended_gpu.traffic import (
    FEATURE_HEAD,
    SCHEDULER_HEAD,
    SYSTEM_HEAD,
    feature_cells,
    scheduler_cells,
    system_cells,
    table,
)


def print_tables(folder: Path) -> None:
    """Run the jobs in float16, and print what they ask the device for."""
    with pretended_gpu() as gpu:
        specs = {
            "systems": spec_on_device(folder / "systems", "float16", system_rows()),
            "schedulers": spec_on_device(folder / "schedulers", "float16", scheduler_rows()),
        }
        specs |= {
            name: spec_on_device(folder / str(number), "float16", rows, **changes)
            for number, (name, (rows, changes)) in enumerate(FEATURES.items())
        }
        models = models_on_device("float16", gpu)
        audits = {name: audit(spec, models, gpu) for name, spec in specs.items()}
    features = {name: feature_cells(audits[name]) for name in FEATURES}
    print(table(SYSTEM_HEAD, system_cells(audits["systems"])), end="\n\n")
    print(table(SCHEDULER_HEAD, scheduler_cells(audits["schedulers"])), end="\n\n")
    print(table(FEATURE_HEAD, features))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print_tables(Path(temporary))
