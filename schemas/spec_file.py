"""From a YAML file to a JobSpec, with errors that name the line, the key and the way out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.errors import SpecError
from schemas.nearest import nearest
from schemas.spec import JobSpec
from schemas.strict_yaml import Location, parse_yaml, read_yaml

_WANTED = {
    "int_type": "wants a whole number",
    "float_type": "wants a number",
    "string_type": "wants text",
    "bool_type": "wants true or false",
    "list_type": "wants a list",
    "dict_type": "wants a mapping of names to values",
    "model_type": "wants a mapping of keys to values",
    "model_attributes_type": "wants a mapping of keys to values",
}


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
    try:
        return JobSpec.model_validate(value)
    except ValidationError as error:
        raise SpecError(_describe(error, sources, str(path))) from error


def _apply(value: dict[str, Any], override: str, sources: dict[Location, str]) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise SpecError(f"--set {override}: write it as key.key=value, such as --set seed=7")
    parsed, _ = parse_yaml(text, f"--set {override}")
    section = value
    for name in names[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise SpecError(f"--set {override}: `{name}` holds a value, not a section with keys")
    section[names[-1]] = parsed
    sources[tuple(names)] = f"--set {override}"


def _describe(error: ValidationError, sources: dict[Location, str], path: str) -> str:
    """One line per place; what the members of a union want is joined by "or"."""
    messages: dict[tuple[str, str], list[str]] = {}
    for detail in error.errors(include_url=False):
        at = _own_keys(detail["loc"])
        problem = _problem(detail, at)
        if not at:  # the cross-checks of JobSpec: their messages begin with the key
            key, _, problem = problem.partition(": ")
            at = tuple(key.split("."))
        source = next((sources[at[:n]] for n in range(len(at), -1, -1) if at[:n] in sources), path)
        messages.setdefault((source, ".".join(map(str, at))), []).append(problem)
    return "\n".join(f"{source}: {key}: {' or '.join(said)}" for (source, key), said in messages.items())


def _own_keys(at: Location) -> Location:
    """The location without the names of types that pydantic adds for a union's members."""
    types = {"int", "float", "str", "list[str]"}
    return tuple(key for key in at if key not in types and not str(key).startswith("literal["))


def _problem(detail: ErrorDetails, at: Location) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        valid = _keys_of(at[:-1])
        return "unknown key" + (nearest(str(at[-1]), valid) or f"; keys here are {', '.join(valid)}")
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "literal_error":
        return f"{detail['ctx']['expected']}, not {_shown(detail['input'])}"
    wanted = _WANTED.get(kind) or detail["msg"].replace("Input should be", "wants a value")
    return f"{wanted}, not {_shown(detail['input'])}"


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _keys_of(at: Location) -> list[str]:
    """The keys that a section of the spec may have."""
    model: Any = JobSpec
    for key in at:
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(str(key))
            if field is None:
                return []
            model = field.annotation
        else:
            model = get_args(model)[-1]
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
