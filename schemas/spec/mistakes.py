"""What is wrong with a YAML file that a pydantic type refuses, in words that say how to fix it."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.spec.strict_yaml import Location
from schemas.wording.amounts import counted
from schemas.wording.foreign_names import FOREIGN_NAMES
from schemas.wording.nearest import did_you_mean
from schemas.wording.printable import shortened

MAX_MISTAKES = 20
"""The most mistakes that one SpecError lists."""
_EXPECTED = {
    "int_type": "a whole number",
    "bool_type": "true or false",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "up to 100 letters, digits, dots, dashes and underscores (no spaces)",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
}
"""What the value must be, by pydantic's type of error."""

Hint = Callable[[Location, object], str]
"""The way out that a message ends with, for the keys that lead to a value, and the value."""


def described(
    error: ValidationError,
    value: Any,
    sources: Mapping[Location, str],
    path: str,
    root: type[BaseModel],
    hint: Hint = lambda at, value: "",
) -> str:
    """The message about a file of this value: one line for each faulty value, for at most MAX_MISTAKES.

    `sources`: what wrote each value, as a message begins; `root`: the type of the whole file; `hint`: what is
    to be said of single values besides.
    """
    details: dict[Location, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        details.setdefault(_own_keys(detail, value), []).append(detail)
    lines = []
    for at, value_details in islice(details.items(), MAX_MISTAKES):
        problem = _problem(value_details, at, root)
        if not at:  # the cross-checks of the whole file: their messages begin with the key
            key, _, problem = problem.partition(": ")
            at = tuple(key.split("."))
        source = next((sources[at[:n]] for n in range(len(at), -1, -1) if at[:n] in sources), path)
        key = ".".join(shortened(str(key)) or '""' for key in at)
        lines.append(f"{source}: {key}: {problem}{hint(at, value_details[0]['input'])}")
    if len(details) > MAX_MISTAKES:
        lines.append(f"and {counted(len(details) - MAX_MISTAKES, 'more mistake')}")
    return "\n".join(lines)


def _own_keys(detail: ErrorDetails, value: Any) -> Location:
    """The keys that lead to the detail in `value`, without the types that pydantic adds for unions."""
    own: Location = ()
    for key in detail["loc"]:
        if key in value if isinstance(value, dict) else isinstance(value, list) and isinstance(key, int):
            own, value = (*own, key), value[key]
    return (*own, detail["loc"][-1]) if detail["type"] == "missing" else own


def _problem(details: Sequence[ErrorDetails], at: Location, root: type[BaseModel]) -> str:
    """What is wrong with one value. There are several details if the value may have any of several types."""
    first = details[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key{_key_hint(str(at[-1]), _keys_of(at[:-1], root), root)}"
    if first["type"] == "missing":
        return "is missing"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    value = first["input"]
    quotes = first["type"] == "string_type" and isinstance(value, (bool, int, float))
    expected = " or ".join(_expected(detail, at, root) for detail in details)
    return f"must be {expected}, not {_shown(value)}" + ("; put it in quotes" if quotes else "")


def _expected(detail: ErrorDetails, at: Location, root: type[BaseModel]) -> str:
    """What the value must be, in words that follow `must be`."""
    if detail["type"] == "model_type":
        return f"a mapping, such as {{{_keys_of(at, root)[0]}: ...}}"
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"])
    if detail["type"] in ("too_short", "too_long"):
        # Only pairs have a bound other than one.
        at_least_one = detail["ctx"].get("min_length") == 1
        return "a value with at least one entry" if at_least_one else "a list of two entries"
    return _EXPECTED.get(detail["type"]) or detail["msg"].replace("Input should be", "a value")


def _key_hint(key: str, valid: Sequence[str], root: type[BaseModel]) -> str:
    """The end of the message about an unknown key: where it belongs, or which key was probably meant."""
    if key in root.model_fields:
        return "; it belongs at the top level"
    if FOREIGN_NAMES.get(key.lower()) in valid:
        return f"; darkroom calls it `{FOREIGN_NAMES[key.lower()]}`"
    homes = [
        f"`{section}{name}`"
        for section in root.model_fields
        for name in ("", ".NAME")
        if key in _keys_of((section, name) if name else (section,), root)
    ]
    home = f"; `{key}` belongs under {' or '.join(homes)}" if homes else ""
    return did_you_mean(key, valid) + home or f"; keys here are {', '.join(valid)}"


def _shown(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return shortened(text)


def _keys_of(at: Location, root: type[BaseModel]) -> list[str]:
    """The keys that a section may have, the required ones first."""
    section: Any = root
    for key in at:
        if _is_model(section):
            field = section.model_fields.get(str(key))
            section = field and field.annotation
            if isinstance(section, UnionType):
                section = next(filter(_is_model, get_args(section)), section)
        else:
            section = next(iter(get_args(section)[-1:]), None)
    fields = section.model_fields if _is_model(section) else {}
    names = sorted(fields, key=lambda name: not fields[name].is_required())
    return [fields[name].alias or name for name in names]


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
