"""The planted mistakes, as the TOML files in `lists/` name them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
"""The folder of the repository."""
LISTS = Path(__file__).parent / "lists"


class MisplacedError(ValueError):
    """A planted mistake does not fit the code or the tests as they are now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A piece of a file, what it is replaced by, and the tests of which one must then fail."""

    name: str
    """What the code does wrong with it, as `the lease of another host is taken for dead`."""
    file: str
    """The path of the file, relative to the repository."""
    old: str
    """A piece of the file that occurs in it once."""
    new: str
    tests: tuple[str, ...]
    """The arguments for pytest: files or node ids."""

    def planted(self, source: str) -> str:
        """The file's text with the mistake; MisplacedError if `old` does not occur in it exactly once."""
        num = source.count(self.old)
        if num != 1 or self.old == self.new:
            raise MisplacedError(f"{self.name!r}: {self.file} contains {num} times: {self.old!r}")
        return source.replace(self.old, self.new)


def planted_mistakes() -> list[Mistake]:
    """All mistakes, in the order of the lists and their entries; MisplacedError if two have one name."""
    mistakes = [
        _mistake(entry)
        for path in sorted(LISTS.glob("*.toml"))
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mistake"]
    ]
    names = [mistake.name for mistake in mistakes]
    for name in names:
        if names.count(name) > 1:
            raise MisplacedError(f"two mistakes have the name {name!r}")
    return mistakes


def _mistake(entry: Mapping[str, Any]) -> Mistake:
    texts = {name: entry[name] for name in ("name", "file", "old", "new")}
    return Mistake(**texts, tests=tuple(entry["tests"]))
