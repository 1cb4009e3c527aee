"""Facts about who may import whom, read from the source of every module."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cache

import pytest

from schemas.systems.system_table import SYSTEMS
from tests.support.house_rules import (
    Imports,
    Order,
    circles,
    imported_names,
    module_name,
    repeated_stems,
    strays,
    upward,
)
from tests.support.running import ROOT


def order(*ranks: str) -> Order:
    return [frozenset(rank.split()) for rank in ranks]


HOUSE: Mapping[str, Order] = {
    # At the top demo stands on actors. Nothing imports tests; demo draws its rows with tools.
    "": order("schemas", "models", "actors", "jobs", "tools", "demo", "benchmarks", "tests"),
    "schemas": order("errors output_layout wording", "systems", "spec", "columns", "job"),
    "actors": order(
        "storage process machine_limits",
        "inputs images checkpoints",
        "rows",
        "parts engine",
        "speeds",
        "shard_run",
        "worker",
        "worker_process",
    ),
    "actors.engine": order(
        "samples quirks device_facts",
        "cohorts engine batching adapters",
        "pipelines",
        "calls compiling",
        "cohort_runner",
        "diffusers_engine",
    ),
    "jobs": order(
        "signals in_flight",
        "intake",
        "survey",
        "planning sweeps",
        "output",
        "dispatch reports verification",
        "estimates",
        "fleet preparation drafting",
        "run retry trial checkup",
        "commands",
        "__main__",
    ),
}
"""The rooms of each folder, the lowest first. A room imports lower ones, and none beside it."""

HOMES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("torch", "diffusers", "transformers", "greenlet", "compel", "peft"),
        ("actors.engine", "demo", "benchmarks", "tools", "tests"),
    ),
    "ray": ("jobs.fleet", "benchmarks", "tests"),
}
"""The only folders in which a heavy library may be imported."""

FORBIDDEN: Mapping[str, tuple[str, ...]] = {
    "jobs": ("actors.engine", "demo"),
    "actors": ("demo",),
    "actors.engine.batching": ("actors.engine.samples", "actors.rows", "actors.images", "schemas"),
    "demo": ("jobs",),
}
"""Arrows that the order would allow, and the house does not."""

TOP_LEVEL = ("schemas", "models", "actors", "jobs", "demo", "benchmarks", "tools", "tests")
FILES = sorted(path.relative_to(ROOT) for top in TOP_LEVEL for path in (ROOT / top).rglob("*.py"))
MAX_MODULES = 11
"""In one folder: more are not found by looking."""


@cache
def imports_of_files() -> Imports:
    """What each module of the repository imports."""
    return {
        module_name(path): frozenset(imported_names((ROOT / path).read_text(encoding="utf-8")))
        for path in FILES
    }


def with_arrow(module: str, imported: str) -> Imports:
    """The imports, and one more."""
    imports = imports_of_files()
    return {**imports, module: imports.get(module, frozenset()) | {imported}}


@pytest.mark.parametrize("folder", HOUSE)
def test_imports_run_down(folder: str) -> None:
    """Deferred imports count, and every room has its place in the order."""
    assert upward(imports_of_files(), folder, HOUSE[folder]) == []


@pytest.mark.parametrize(
    ("folder", "module", "imported"),
    [
        ("", "schemas.errors", "jobs.signals"),
        ("", "actors.worker", "jobs.planning.plan"),
        ("", "jobs.run", "tests.support.running"),
        ("schemas", "schemas.systems.schedulers", "schemas.spec.job_spec"),
        ("actors", "actors.rows.row", "actors.parts.part"),
        ("actors", "actors.inputs.values", "actors.images.spool"),
        ("actors.engine", "actors.engine.batching.batcher", "actors.engine.pipelines.loading"),
        ("jobs", "jobs.reports.status", "jobs.verification.verify"),
        ("jobs", "jobs.planning.plan", "jobs.output.parts"),
    ],
)
def test_an_arrow_that_runs_back_up_is_found(folder: str, module: str, imported: str) -> None:
    """And one between rooms that stand side by side."""
    broken = with_arrow(module, imported)

    assert upward(broken, folder, HOUSE[folder]) == [f"{module} imports {imported}"]


def test_a_room_without_a_place_in_the_order_is_found() -> None:
    """A new folder is put into the order on purpose."""
    broken = {**imports_of_files(), "actors.attic.box": frozenset[str]()}

    assert upward(broken, "actors", HOUSE["actors"]) == ["actors.attic has no place in the order"]


@pytest.mark.parametrize("depth", [None, 1, 2, 3, 4])
def test_nothing_goes_in_a_circle(depth: int | None) -> None:
    """Neither by file nor by folder, however deep one looks."""
    assert circles(imports_of_files(), depth) == []


@pytest.mark.parametrize(
    ("depth", "module", "imported", "circle"),
    [
        (None, "schemas.wording.printable", "schemas.wording.nearest", "schemas.wording.printable"),
        (1, "schemas.errors", "jobs.signals", "actors <-> jobs <-> models <-> schemas"),
        (2, "actors.storage.uris", "actors.inputs.values", "actors.inputs <-> actors.storage"),
        (3, "actors.engine.pipelines.loading", "actors.engine.calls.chains", "actors.engine.pipelines"),
    ],
)
def test_a_circle_is_found(depth: int | None, module: str, imported: str, circle: str) -> None:
    """At the depth at which it shows."""
    found = circles(with_arrow(module, imported), depth)

    assert [each for each in found if circle in each]


def test_heavy_libraries_have_one_home() -> None:
    """Images are generated under actors/engine, Ray is asked under jobs/fleet, and nowhere else."""
    assert strays(imports_of_files(), HOMES) == []


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("actors.rows.checks", "torch.nn"),
        ("jobs.run", "ray"),
        ("jobs.planning.plan", "diffusers"),
        ("actors.worker", "ray"),
    ],
)
def test_a_library_outside_its_home_is_found(module: str, library: str) -> None:
    """Wherever in the file it is imported."""
    assert strays(with_arrow(module, library), HOMES) == [f"{module} imports {library}"]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_some_rooms_stay_apart(folder: str) -> None:
    """The driver knows nothing of the engine, and batching nothing of rows."""
    met = [
        f"{module} imports {name}"
        for module, names in imports_of_files().items()
        for name in names
        if f"{module}.".startswith(f"{folder}.")
        and any(f"{name}.".startswith(f"{other}.") for other in FORBIDDEN[folder])
    ]

    assert met == []


def test_imports_are_absolute() -> None:
    """A line says by itself what it imports."""
    relative = [
        module for module, names in imports_of_files().items() if any(name.startswith(".") for name in names)
    ]

    assert relative == []


def test_a_module_is_known_by_its_name_alone() -> None:
    """No two files of the repository share a name, nor one with a top-level package."""
    modules = [module_name(path) for path in FILES if not path.stem.startswith("__")]

    assert repeated_stems([*modules, *TOP_LEVEL, "configs"]) == []
    assert repeated_stems([*modules, "jobs.attic.printable"]) == ["printable"]


def test_a_folder_is_seen_at_a_glance() -> None:
    """It has at most eleven modules."""
    modules = Counter(path.parent for path in FILES if path.stem != "__init__")

    assert {str(folder): number for folder, number in modules.items() if number > MAX_MODULES} == {}


def test_an_init_file_says_what_its_folder_is_for() -> None:
    """In one docstring, and without code; schemas has the version too, which setuptools reads there."""
    others = []
    for path in (
        path for path in FILES if path.stem == "__init__" and path.parts != ("schemas", "__init__.py")
    ):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        if ast.get_docstring(tree) is None or len(tree.body) > 1:
            others.append(str(path))

    assert others == []


def test_a_pipeline_of_our_own_is_named_in_the_table_and_in_its_file_alone() -> None:
    """So one more system takes one file and one entry; but for what builds the demo checkpoints."""
    own = {system.pipeline: system.module for system in SYSTEMS if system.module != "diffusers"}
    product = [path for path in FILES if path.parts[0] in ("schemas", "models", "actors", "jobs", "demo")]

    named = {
        pipeline: {
            path.as_posix() for path in product if pipeline in (ROOT / path).read_text(encoding="utf-8")
        }
        for pipeline in own
    }

    assert own
    assert named == {
        pipeline: {
            "schemas/systems/system_table.py",
            f"{module.replace('.', '/')}.py",
            "demo/random_checkpoints.py",
        }
        for pipeline, module in own.items()
    }


def test_the_rules_see_every_module() -> None:
    """The lists above are not empty, and a deferred import is seen."""
    imports = imports_of_files()

    assert len(imports) > 200
    assert "actors.storage.s3" in imports["actors.storage.stores"]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("jobs.__main__", {"torch", "diffusers", "transformers", "ray", "pyarrow", "numpy"}),
        ("jobs.planning.plan_text", {"torch", "diffusers", "transformers", "ray"}),
        ("jobs.run", {"torch", "diffusers", "transformers"}),
        ("jobs.trial.trial_run", {"torch", "diffusers", "transformers", "ray"}),
        ("jobs.verification.verify", {"torch", "diffusers", "transformers", "ray"}),
        ("jobs.reports.status", {"torch", "diffusers", "transformers", "ray"}),
    ],
)
def test_a_command_loads_no_more_than_it_needs(module: str, absent: set[str]) -> None:
    """The driver never imports torch, and what only reads files does not import Ray."""
    code = f"import sys, {module}; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert not absent & set(loaded.stdout.split())
