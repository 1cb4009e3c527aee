"""YAML without its traps: only plain values, and the line of every key.

`yaml.safe_load` stops tags that run code. It does not stop alias bombs (271 bytes that unfold to 43 million
leaves), nor duplicate keys, of which the last one silently wins.
"""

import os
import re
import stat
from pathlib import Path

import yaml
from yaml.reader import ReaderError
from yaml.scanner import ScannerError

from schemas.errors import SpecError
from schemas.wording.printable import shortened

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 20_000
"""The most keys and values. PyYAML takes a second and 20 MB for them; as many paths would fill MAX_BYTES."""

Location = tuple[str | int, ...]
"""The keys and list positions that lead to a value."""


class _YAML12Loader(yaml.SafeLoader):
    """Reads plain values as people mean them: nearly as YAML 1.2 does.

    PyYAML follows YAML 1.1, for which `1e-3` is text, `no` is false, `017` is 15 and `1:30` is 90.
    """

    def fetch_more_tokens(self) -> None:
        """Read on; yaml.YAMLError for everything that is not YAML."""
        try:
            super().fetch_more_tokens()
        except (ValueError, OverflowError) as error:
            # In PyYAML 6.0.3 chr() refuses "\UFFFFFFFF", and int() refuses `%YAML` with 5,000 digits.
            raise ScannerError(None, None, "found a number that is too large", self.get_mark()) from error


_PLAIN_VALUES = {
    "null": (r"(?:~|null|Null|NULL)?", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
}
_YAML12Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _PLAIN_VALUES.items():
    _YAML12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(path: Path) -> tuple[object, dict[Location, int]]:
    """The value of the file, and the line (from 1) on which each value in it begins."""
    return parse_yaml(_read_text(path), str(path))


def _read_text(path: Path) -> str:
    try:
        # This is checked before the file is opened: opening a pipe may wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SpecError(f"{path}: is a folder, a pipe or a device; a spec is a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SpecError(f"{path}: is longer than the {MAX_BYTES:,} bytes that a spec may have")
        return content.decode()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text ({error})") from error


def parse_yaml(text: str, name: str) -> tuple[object, dict[Location, int]]:
    """Like `read_yaml`, for a text; `name` is used in messages instead of the file's name."""
    lines: dict[Location, int] = {}
    try:
        _refuse_traps(text, name)
        loader = _YAML12Loader(text)
        node = loader.get_single_node()
        return (None if node is None else _value(loader, node, (), lines, name)), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(
            f"{name}:{line}: is not YAML: {shortened(str(error.problem))} (check the indentation, "
            "and quote text that has signs such as * or : in it)"
        ) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(
            f"{name}:{line}: the character U+{error.character:04X} is not allowed in YAML"
        ) from error


def _refuse_traps(text: str, name: str) -> None:
    """Raise SpecError for aliases, anchors, tags, great depth and too many values.

    This comes before composing, which follows aliases and recurses once for each level.
    """
    depth = num_values = 0
    for event in yaml.parse(text, Loader=_YAML12Loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise SpecError(f"{name}:{line}: is nested more than {MAX_DEPTH} levels deep")
        num_values += isinstance(event, yaml.NodeEvent)
        if num_values > MAX_VALUES:
            raise SpecError(
                f"{name}:{line}: more than {MAX_VALUES:,} keys and values; "
                "to name many files, use a folder or a pattern"
            )
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise SpecError(
                f"{name}:{line}: anchors and aliases (& and *) are not allowed; write the value "
                "out, or put a text that begins with & or * in quotes"
            )
        if tag := getattr(event, "tag", None):
            raise SpecError(f"{name}:{line}: the tag {shortened(tag)} is not allowed; write a plain value")


def _value(
    loader: yaml.SafeLoader, node: yaml.Node, at: Location, lines: dict[Location, int], name: str
) -> object:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, at, lines, name)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*at, i), lines, name) for i, item in enumerate(node.value)]
    try:
        return _checked_text(loader.construct_object(node, deep=True), lines[at], name)
    except ValueError as error:  # Python 3.11 refuses numbers of more than 4,300 digits.
        raise SpecError(f"{name}:{lines[at]}: {node.value[:20]}... is too long for a number") from error


def _checked_text(value: object, line: int, name: str) -> object:
    """The value itself; SpecError for a text such as "\\ud800", half a character, which cannot be written."""
    half = isinstance(value, str) and next((sign for sign in value if "\ud800" <= sign <= "\udfff"), None)
    if half:
        raise SpecError(f"{name}:{line}: U+{ord(half):04X} is half a character; write the whole one")
    return value


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, at: Location, lines: dict[Location, int], name: str
) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
        _checked_text(key, line, name)
        if not isinstance(key, str):
            written = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or a mapping"
            raise SpecError(f"{name}:{line}: a key must be text, not {shortened(written)}; put it in quotes")
        if key in mapping:
            raise SpecError(
                f"{name}:{line}: the key `{shortened(key)}` appears twice (first on line {lines[(*at, key)]})"
            )
        lines[(*at, key)] = line
        mapping[key] = _value(loader, value_node, (*at, key), lines, name)
    return mapping
