"""JSON that is read from an output. Anybody may have written it, so it is checked when it is read."""

import json
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from schemas.errors import RefusedError
from schemas.wording.printable import shortened

Parsed = TypeVar("Parsed")


def parse_json(data: bytes, adapter: TypeAdapter[Parsed], name: str) -> Parsed:
    """The value of the adapter's type; unknown keys, which newer versions may add, are ignored.

    RefusedError, with `name` and the first mistake, where the JSON does not have this type.
    """
    try:
        return adapter.validate_json(data, strict=True, extra="ignore")
    except ValidationError as error:
        raise RefusedError(f"{name} is not what darkroom writes there: {_first_mistake(error)}") from error


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors(include_url=False)[0]
    rule = mistake["msg"].replace("Input should be", "it should be")
    if not mistake["loc"]:
        return rule
    key = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "missing":
        return f"`{key}` is missing"
    return f"`{key}` is {_shown(mistake['input'])}; {rule}"


def _shown(value: object) -> str:
    return shortened(json.dumps(value, ensure_ascii=False, default=str))
