"""From a YAML file to a JobSpec, with errors that name the line and the key and say how to fix them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.spec.mistakes import described
from schemas.spec.secret_forms import has_secret_form
from schemas.spec.strict_yaml import MAX_DEPTH, Location, parse_yaml, read_yaml
from schemas.systems.parameters import PARAMETERS
from schemas.systems.system_table import XL_PROMPTS
from schemas.wording.printable import shortened

_LISTS = {name for name, bounds in PARAMETERS.items() if bounds.kind in ("pair of whole numbers", "controls")}
_SWEPT = {*PARAMETERS, *XL_PROMPTS, "task", "model", "seed", "num_images_per_prompt"} - _LISTS
"""The fields of which a row has one value, and which somebody may give several of in a route."""


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
        raise SpecError(described(error, value, sources, name, JobSpec, _sweep_hint)) from error


def _sweep_hint(at: Location, value: object) -> str:
    """How a list of values becomes rows, where a route or the job can have only one of them."""
    if at != ("seed",) and not (len(at) == 3 and at[0] == "routes" and at[2] in _SWEPT):
        return ""
    if not isinstance(value, list) or not value:
        return ""
    values = json.dumps(value, ensure_ascii=False)
    return (
        f". For rows with each of these values, write a sweep.yaml with the two lines\n  version: 1\n  "
        f"product: {{{at[-1]}: {shortened(values)}}}\nand run: darkroom expand sweep.yaml rows.parquet "
        "(docs/sweeps.md)"
    )


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
