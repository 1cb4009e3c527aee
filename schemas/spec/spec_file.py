"""From a YAML file to a JobSpec, with errors that name the line and the key and say how to fix them."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.spec.secret_forms import has_secret_form
from schemas.spec.strict_yaml import MAX_DEPTH, Location, parse_yaml, read_yaml
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


def load_spec(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The spec in a job's YAML file, with `a.b=value` overrides applied, and fully checked.

    Raises SpecError with one line per mistake.
    """
    return _checked(*read_yaml(path), str(path), overrides)


def parse_spec(text: str, name: str) -> JobSpec:
    """Like `load_spec`, for a text; `name` is used in messages instead of the file's name."""
    return _checked(*parse_yaml(text, name), name, ())


def _checked(value: object, lines: Mapping[Location, int], name: str, overrides: Sequence[str]) -> JobSpec:
    if not isinstance(value, dict):
        raise SpecError(f"{name}:1: a spec is a mapping that begins with `version: 1`")
    sources: dict[Location, str] = {at: f"{name}:{line}" for at, line in lines.items()}
    for override in overrides:
        _apply(value, override, sources)
    _refuse_secrets(value, sources)
    try:
        return JobSpec.model_validate(value)
    except ValidationError as error:
        raise SpecError(_describe(error, value, sources, name)) from error


def _refuse_secrets(value: object, sources: dict[Location, str], at: Location = ()) -> None:
    """Raise SpecError for a value that looks like a secret, because outputs and reports contain the spec."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_secrets(key, sources, at)
            _refuse_secrets(inner, sources, (*at, key))
    elif isinstance(value, str) and has_secret_form(value):
        source = next((sources[at[:n]] for n in range(len(at), -1, -1) if at[:n] in sources), "the spec")
        raise SpecError(
            f"{source.partition('=')[0]}: a value here has the form of a secret key or token; credentials "
            "belong in the environment of the driver and the workers (AWS_*, HF_TOKEN), never in a spec"
        )


def _apply(value: dict[str, Any], override: str, sources: dict[Location, str]) -> None:
    key, equals, text = override.partition("=")
    names, typed = key.strip().split("."), f"--set {shortened(override)}"
    if not equals or not all(names):
        raise SpecError(f"{typed}: write it as key.key=value, such as --set seed=7")
    if len(names) > MAX_DEPTH:
        raise SpecError(f"{typed}: is nested more than {MAX_DEPTH} levels deep")
    parsed, _ = parse_yaml(text, f"--set {shortened(key)}")
    section = value
    for name in names[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise SpecError(f"{typed}: `{shortened(name)}` is a value, not a section with keys")
    section[names[-1]] = parsed
    at = tuple(names)
    for below in [location for location in sources if location[: len(at)] == at]:
        del sources[below]
    sources[at] = typed


def _describe(error: ValidationError, value: Any, sources: dict[Location, str], path: str) -> str:
    """The message: one line for each faulty value, for at most MAX_MISTAKES of them."""
    details: dict[Location, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        details.setdefault(_own_keys(detail, value), []).append(detail)
    lines = []
    for at, value_details in islice(details.items(), MAX_MISTAKES):
        problem = _problem(value_details, at)
        if not at:  # the cross-checks of JobSpec: their messages begin with the key
            key, _, problem = problem.partition(": ")
            at = tuple(key.split("."))
        source = next((sources[at[:n]] for n in range(len(at), -1, -1) if at[:n] in sources), path)
        key = ".".join(shortened(str(key)) or '""' for key in at)
        lines.append(f"{source}: {key}: {problem}")
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


def _problem(details: Sequence[ErrorDetails], at: Location) -> str:
    """What is wrong with one value. There are several details if the value may have any of several types."""
    first = details[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key{_key_hint(str(at[-1]), _keys_of(at[:-1]))}"
    if first["type"] == "missing":
        return "is missing"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    value = first["input"]
    quotes = first["type"] == "string_type" and isinstance(value, (bool, int, float))
    expected = " or ".join(_expected(detail, at) for detail in details)
    return f"must be {expected}, not {_shown(value)}" + ("; put it in quotes" if quotes else "")


def _expected(detail: ErrorDetails, at: Location) -> str:
    """What the value must be, in words that follow `must be`."""
    if detail["type"] == "model_type":
        return f"a mapping, such as {{{_keys_of(at)[0]}: ...}}"
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"])
    if detail["type"] in ("too_short", "too_long"):
        # Only pairs have a bound other than one.
        at_least_one = detail["ctx"].get("min_length") == 1
        return "a value with at least one entry" if at_least_one else "a list of two entries"
    return _EXPECTED.get(detail["type"]) or detail["msg"].replace("Input should be", "a value")


def _key_hint(key: str, valid: Sequence[str]) -> str:
    """The end of the message about an unknown key: where it belongs, or which key was probably meant."""
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
    return did_you_mean(key, valid) + home or f"; keys here are {', '.join(valid)}"


def _shown(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return shortened(text)


def _keys_of(at: Location) -> list[str]:
    """The keys that a section of the spec may have, the required ones first."""
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
