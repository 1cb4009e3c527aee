"""JSON that lies in an output. Anybody may have written it, so that it is checked where it enters."""

import json
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from schemas.errors import RefusedError
from schemas.wording.printable import shortened

Parsed = TypeVar("Parsed")


def parse_json(data: bytes, wanted: TypeAdapter[Parsed], name: str) -> Parsed:
    """The value, of which keys that newer writers have added are left out; RefusedError, with `name` and
    the first mistake, where it is not of the type that is wanted."""
    try:
        return wanted.validate_json(data, strict=True, extra="ignore")
    except ValidationError as error:
        raise RefusedError(f"{name} is not what darkroom writes there: {_first_mistake(error)}") from error


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors(include_url=False)[0]
    said = mistake["msg"].replace("Input should be", "it should be")
    if not mistake["loc"]:
        return said
    key = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "missing":
        return f"`{key}` is missing"
    return f"`{key}` is {_shown(mistake['input'])}; {said}"


def _shown(value: object) -> str:
    return shortened(json.dumps(value, ensure_ascii=False, default=str))
