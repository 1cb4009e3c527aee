"""From a YAML file to a JobSpec, with errors that name the line and the key and say how to fix them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.spec.mistakes import described
from schemas.spec.secret_forms import has_secret_form
from schemas.spec.strict_yaml import MAX_DEPTH, Location, parse_yaml, read_yaml
from schemas.wording.printable import shortened


def load_spec(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The spec in a job's YAML file, with `a.b=value` overrides applied, and fully checked.

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
        raise SpecError(described(error, value, sources, str(path), JobSpec)) from error


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
