"""Facts about who may import whom, read from the source of every module."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.systems.system_table import SYSTEMS
from tests.support.running import ROOT

LAYERS = ("schemas", "models", "actors", "jobs")
"""Each imports itself and those before it."""
MODULES = sorted(path for layer in (*LAYERS, "demo") for path in (ROOT / layer).rglob("*.py"))
HOME: dict[str, tuple[str, ...]] = {
    "torch": ("actors", "demo"),
    "diffusers": ("actors", "demo"),
    "transformers": ("actors", "demo"),
    "ray": ("jobs",),
}
"""The packages in which a heavy library may be imported."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it: at the top, in a function, by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{'.' * node.level}{node.module or ''}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield ast.unparse(node.args[0]).strip("'\"")


def root(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    """schemas <- actors <- jobs, and never back; deferred imports count."""
    layer = path.relative_to(ROOT).parts[0]
    allowed = LAYERS[: LAYERS.index(layer) + 1] if layer in LAYERS else (*LAYERS, "demo")
    imported = {root(module) for module in imports_of(path)}

    assert not imported & {*LAYERS, "tests", "demo", "benchmarks"} - set(allowed)
    assert "" not in imported, "a relative import"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_have_one_home(path: Path) -> None:
    """Pictures are made under actors/, Ray is asked under jobs/, and nowhere else."""
    layer = path.relative_to(ROOT).parts[0]

    strangers = [module for module in imports_of(path) if layer not in HOME.get(root(module), (layer,))]

    assert not strangers


def test_a_module_is_known_by_its_name_alone() -> None:
    """No two modules of the three packages share a name, nor one with a top-level package."""
    names = Counter(path.stem for path in MODULES if not path.stem.startswith("__"))

    assert not [name for name, count in names.items() if count > 1]
    assert not names.keys() & {*LAYERS, "configs", "tests"}


def test_a_pipeline_of_our_own_is_named_in_the_table_and_in_its_file_alone() -> None:
    """So one more system takes one file and one entry; but for what builds the demo checkpoints."""
    own = {system.pipeline: system.module for system in SYSTEMS if system.module != "diffusers"}

    named = {
        pipeline: {name_of(path) for path in MODULES if pipeline in path.read_text(encoding="utf-8")}
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
    storage = ROOT / "actors" / "storage" / "stores.py"

    assert len(MODULES) > 30
    assert "actors.storage.s3" in set(imports_of(storage))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("jobs.__main__", {"torch", "diffusers", "transformers", "ray", "pyarrow", "numpy"}),
        ("jobs.planning.plan_text", {"torch", "diffusers", "transformers", "ray"}),
        ("jobs.run", {"torch", "diffusers", "transformers"}),
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
