"""The rules about imports between modules: each function gives the imports that break a rule."""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

Imports = Mapping[str, frozenset[str]]
"""All names that each module imports (`torch`, `schemas.errors`), by module (`actors.rows.checks`)."""

Order = Sequence[frozenset[str]]
"""The rooms of a folder, the lowest first. A room may import lower ones, but none of its own set."""


def imported_names(source: str) -> Iterator[str]:
    """Every module that a file imports, at the top, in a function or by name.

    `from a import b` gives `a` and `a.b`, because b may be a module. A relative import begins with a dot.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{'.' * node.level}{node.module or ''}"
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield ast.unparse(node.args[0]).strip("'\"")


def module_name(path: PurePath) -> str:
    """The module's name: `actors.rows.checks` for actors/rows/checks.py, the folder for an __init__.py."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(imports: Imports) -> Iterator[tuple[str, str]]:
    """Pairs of a module and a module that it imports; only modules of the repository."""
    for module, names in imports.items():
        for name in names:
            if name in imports and name != module:
                yield module, name


def upward(imports: Imports, folder: str, order: Order) -> list[str]:
    """Imports from a room of a folder to a room that is not lower, and rooms that are not in the order."""
    ranks = {room: rank for rank, rooms in enumerate(order) for room in rooms}
    prefix = f"{folder}." if folder else ""
    rooms = {module: _room(module, prefix) for module in imports if module.startswith(prefix)}
    broken = [f"{prefix}{room} has no place in the order" for room in {*rooms.values()} - {"", *ranks}]
    for module, imported in arrows(imports):
        room, other = rooms.get(module, ""), rooms.get(imported, "")
        if room in ranks and other in ranks and room != other and ranks[other] >= ranks[room]:
            broken.append(f"{module} imports {imported}")
    return sorted(broken)


def _room(module: str, prefix: str) -> str:
    return module.removeprefix(prefix).partition(".")[0]


def circles(imports: Imports, depth: int | None = None) -> list[str]:
    """Circular imports between modules or, with a depth, between folders.

    At depth 2 `actors.engine` is a folder. A module at a smaller depth counts as a folder of its own.
    """
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for module, imported in arrows(imports):
        node, other = (".".join(name.split(".")[:depth]) for name in (module, imported))
        if node != other and not _is_package(other, imports, depth):
            graph[node].add(other)
    return sorted(" <-> ".join(sorted(circle)) for circle in _knots(graph))


def _is_package(node: str, imports: Imports, depth: int | None) -> bool:
    """Whether the node is only a folder on the way to deeper ones: its __init__.py has no code."""
    is_cut = depth is not None and len(node.split(".")) == depth
    return not is_cut and any(module.startswith(f"{node}.") for module in imports)


def _knots(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of nodes in which each node reaches all others."""
    reach = {node: _reachable(node, graph) for node in graph}
    knots: list[set[str]] = []
    for node in graph:
        knot = {other for other in reach[node] if node in reach.get(other, ())}
        if len(knot) > 1 and knot not in knots:
            knots.append(knot)
    return knots


def _reachable(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for node in graph.get(waiting.pop(), ()):
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return seen


def repeated_stems(modules: Sequence[str]) -> list[str]:
    """The names of files that exist in more than one folder."""
    stems = Counter(module.rpartition(".")[2] for module in modules)
    return sorted(stem for stem, count in stems.items() if count > 1)


def strays(imports: Imports, homes: Mapping[str, Sequence[str]]) -> list[str]:
    """Imports of a library outside its home folders."""
    return sorted(
        f"{module} imports {name}"
        for module, names in imports.items()
        for name in names
        if not _is_at_home(module, homes.get(name.partition(".")[0]))
    )


def _is_at_home(module: str, homes: Sequence[str] | None) -> bool:
    return homes is None or any(f"{module}.".startswith(f"{home}.") for home in homes)
