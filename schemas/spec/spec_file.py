"""From a YAML file to a JobSpec, with errors that name the line, the key and the way out."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.spec.secret_forms import has_secret_form
from schemas.spec.strict_yaml import MAX_DEPTH, Location, parse_yaml, read_yaml
from schemas.wording.foreign_names import FOREIGN_NAMES
from schemas.wording.nearest import nearest
from schemas.wording.printable import shortened

MAX_MISTAKES = 20
"""Lines of a refusal."""
_WANTED = {
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
"""What pydantic's types of error say that a value should be."""


def load_spec(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job's YAML, apply `a.b=value` overrides, check all of it.

    Raises SpecError with one line per mistake.
    """
    value, lines = read_yaml(path)
    if not isinstance(value, dict):
        raise SpecError(f"{path}:1: a spec is a mapping that begins with `version: 1`")
    sources: dict[Location, str] = {at: f"{path}:{line}" for at, line in lines.items()}
    for override in overrides:
        _apply(value, override, sources)
    _refuse_secrets(value, sources)
    try:
        return JobSpec.model_validate(value)
    except ValidationError as error:
        raise SpecError(_describe(error, value, sources, str(path))) from error


def _refuse_secrets(value: object, sources: dict[Location, str], at: Location = ()) -> None:
    """The spec is stored beside the output and shown in reports: a key has no place in it."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_secrets(key, sources, at)
            _refuse_secrets(inner, sources, (*at, key))
    elif isinstance(value, str) and has_secret_form(value):
        source = next((sources[at[:n]] for n in range(len(at), -1, -1) if at[:n] in sources), "the spec")
        raise SpecError(
            f"{source.partition('=')[0]}: a value here has the form of a secret key or token; credentials "
            "are found in the environment of the driver and the workers (AWS_*, HF_TOKEN), never in a spec"
        )


def _apply(value: dict[str, Any], override: str, sources: dict[Location, str]) -> None:
    key, equals, text = override.partition("=")
    names, typed = key.strip().split("."), f"--set {shortened(override)}"
    if not equals or not all(names):
        raise SpecError(f"{typed}: write it as key.key=value, such as --set seed=7")
    if len(names) > MAX_DEPTH:
        raise SpecError(f"{typed}: nested more than {MAX_DEPTH} deep")
    parsed, _ = parse_yaml(text, f"--set {shortened(key)}")
    section = value
    for name in names[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise SpecError(f"{typed}: `{shortened(name)}` holds a value, not a section with keys")
    section[names[-1]] = parsed
    at = tuple(names)
    for below in [place for place in sources if place[: len(at)] == at]:
        del sources[below]
    sources[at] = typed


def _describe(error: ValidationError, value: Any, sources: dict[Location, str], path: str) -> str:
    """One line per place; of many the first ones."""
    details: dict[Location, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        details.setdefault(_own_keys(detail, value), []).append(detail)
    lines = []
    for at, found in islice(details.items(), MAX_MISTAKES):
        problem = _problem(found, at)
        if not at:  # the cross-checks of JobSpec: their messages begin with the key
            key, _, problem = problem.partition(": ")
            at = tuple(key.split("."))
        source = next((sources[at[:n]] for n in range(len(at), -1, -1) if at[:n] in sources), path)
        key = ".".join(shortened(str(key)) or '""' for key in at)
        lines.append(f"{source}: {key}: {problem}")
    if len(details) > MAX_MISTAKES:
        lines.append(f"and {len(details) - MAX_MISTAKES:,} more mistakes")
    return "\n".join(lines)


def _own_keys(detail: ErrorDetails, value: Any) -> Location:
    """The place in the spec's `value`, without the types that pydantic names there for a union's members."""
    own: Location = ()
    for key in detail["loc"]:
        if key in value if isinstance(value, dict) else isinstance(value, list) and isinstance(key, int):
            own, value = (*own, key), value[key]
    return (*own, detail["loc"][-1]) if detail["type"] == "missing" else own


def _problem(details: Sequence[ErrorDetails], at: Location) -> str:
    """What is wrong at one place; there are several details where any of several types would do."""
    first = details[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key{_meant(str(at[-1]), _keys_of(at[:-1]))}"
    if first["type"] == "missing":
        return "is missing"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    value = first["input"]
    quotes = first["type"] == "string_type" and isinstance(value, (bool, int, float))
    wanted = " or ".join(_wanted(detail, at) for detail in details)
    return f"wants {wanted}, not {_shown(value)}" + ("; put it in quotes" if quotes else "")


def _wanted(detail: ErrorDetails, at: Location) -> str:
    if detail["type"] == "model_type":
        return f"keys, such as {{{_keys_of(at)[0]}: ...}}"
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"])
    if detail["type"] in ("too_short", "too_long"):
        # Only pairs have another bound than one.
        return "at least one entry" if detail["ctx"].get("min_length") == 1 else "two entries"
    return _WANTED.get(detail["type"]) or detail["msg"].replace("Input should be", "a value")


def _meant(key: str, valid: Sequence[str]) -> str:
    """Where an unknown key belongs, or which one it should be."""
    if key in JobSpec.model_fields:
        return "; it belongs at the top level"
    if FOREIGN_NAMES.get(key.lower()) in valid:
        return f"; darkroom calls it `{FOREIGN_NAMES[key.lower()]}`"
    homes = [
        f"`{section}{name}`"
        for section in JobSpec.model_fields
        for name in ("", ".NAME")
        if key in _keys_of((section, name) if name else (section,))
    ]
    home = f"; `{key}` belongs under {' or '.join(homes)}" if homes else ""
    return nearest(key, valid) + home or f"; keys here are {', '.join(valid)}"


def _shown(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return shortened(text)


def _keys_of(at: Location) -> list[str]:
    """The keys that a section of the spec may have; those that it must have come first."""
    section: Any = JobSpec
    for key in at:
        if _is_model(section):
            field = section.model_fields.get(str(key))
            section = field and field.annotation
        else:
            section = next(iter(get_args(section)[-1:]), None)
    fields = section.model_fields if _is_model(section) else {}
    return sorted(fields, key=lambda name: not fields[name].is_required())


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
