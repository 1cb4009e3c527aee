"""Which input column fills which field of a row: by the field's name, by the spec, or by a foreign name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pyarrow as pa

from schemas.errors import SpecError
from schemas.spec.job_spec import InputSpec
from schemas.systems.parameters import PARAMETERS
from schemas.wording.foreign_names import FOREIGN_NAMES
from schemas.wording.nearest import did_you_mean

IMAGE_FIELDS: tuple[str, ...] = ("image", "mask_image", "depth_map")
"""Fields that contain an image: a Hugging Face image struct, bytes, or a URI."""

TEXT_FIELDS: tuple[str, ...] = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
"""Fields that say what the image should show, or should not show."""

FIELD_KINDS: dict[str, str] = {
    "row_id": "id",
    "task": "text",
    "model": "text",
    **dict.fromkeys(TEXT_FIELDS, "text"),
    **dict.fromkeys(IMAGE_FIELDS, "image"),
    "seed": "whole number",
    "num_images_per_prompt": "whole number",
    **{name: bounds.kind for name, bounds in PARAMETERS.items()},
}
"""Every field that an input row may have, and the kind of column that can fill it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMap:
    """The columns that a job reads."""

    fields: Mapping[str, str]
    """The column of each field that the input has: field to column."""
    recognised: Mapping[str, str]
    """Those entries of `fields` whose column has a foreign name; the plan prints them."""
    keep: tuple[str, ...]
    """The kept columns, which are copied to the output."""

    def columns(self) -> list[str]:
        """Every column that workers read, each once: the fields' columns, then the kept columns."""
        return list(dict.fromkeys([*self.fields.values(), *self.keep]))


def map_columns(schema: pa.Schema, spec: InputSpec) -> ColumnMap:
    """The column of each field, and the kept columns.

    Raises SpecError if a column that the spec names is missing, or has a type that does not fit its field.
    """
    names = list(schema.names)
    _check_spec(spec, names)
    fields = {field: column for field, column in spec.columns.items() if column is not None}
    spare = [name for name in names if name not in fields.values()]
    fields |= {name: name for name in spare if name in FIELD_KINDS and name not in spec.columns}
    recognised = _recognise(spare, {*fields, *spec.columns})
    fields |= recognised
    for column in {*fields.values(), *spec.keep}:
        if names.count(column) > 1:
            raise SpecError(
                f"the input has {names.count(column)} columns of the name `{column}`; rename all but one"
            )
    for field, column in fields.items():
        _check_type(field, column, schema.field(column).type)
    ordered = {field: fields[field] for field in FIELD_KINDS if field in fields}
    return ColumnMap(fields=ordered, recognised=recognised, keep=tuple(dict.fromkeys(spec.keep)))


def _check_spec(spec: InputSpec, names: list[str]) -> None:
    for field, column in spec.columns.items():
        if field not in FIELD_KINDS:
            hint = did_you_mean(field, FIELD_KINDS) or f"; fields are {', '.join(FIELD_KINDS)}"
            raise SpecError(f"input.columns: darkroom has no field `{field}`{hint}")
        if column is not None and column not in names:
            raise SpecError(f"input.columns.{field}: {_no_column(column, names)}")
    for column in spec.keep:
        if column not in names:
            raise SpecError(f"input.keep: {_no_column(column, names)}")


def _no_column(column: str, names: list[str]) -> str:
    return f"the input has no column `{column}`{did_you_mean(column, names)}; it has {', '.join(names)}"


def _recognise(spare: list[str], settled: Collection[str]) -> dict[str, str]:
    recognised: dict[str, str] = {}
    for column in spare:
        field = FOREIGN_NAMES.get(column.lower()) or (
            column.lower() if column.lower() in FIELD_KINDS else None
        )
        if field is None or field in settled:
            continue
        if field in recognised:
            raise SpecError(
                f"both `{recognised[field]}` and `{column}` could be the field `{field}`; "
                f"choose one with input.columns: {{{field}: {column}}}"
            )
        recognised[field] = column
    return recognised


def _check_type(field: str, column: str, arrow_type: pa.DataType) -> None:
    kind = FIELD_KINDS[field]
    if _accepts(kind, dense(storage_type(arrow_type))):
        return
    fitting = {
        "whole number": "whole numbers",
        "number": "numbers",
        "id": "text or whole numbers",
        "image": "an image struct<bytes, path>, bytes, or text with a URI",
        "pair of whole numbers": "lists of two whole numbers",
        "options": "JSON text, or a struct or a map of numbers, texts and booleans",
    }
    raise SpecError(
        f"column `{column}` is {arrow_type}, but the field `{field}` needs {fitting.get(kind, kind)}; "
        f"convert it, name another column with input.columns: {{{field}: ...}}, or leave the field unread "
        f"with {{{field}: null}}"
    )


def storage_type(arrow_type: pa.DataType) -> pa.DataType:
    """The type as which a field's column is read: an extension type's storage, and text for a UUID."""
    if isinstance(arrow_type, pa.UuidType):
        return pa.string()
    return arrow_type.storage_type if isinstance(arrow_type, pa.BaseExtensionType) else arrow_type


def dense(arrow_type: pa.DataType) -> pa.DataType:
    """The type of the values: that of a dictionary's values, else the type itself."""
    return arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type


def kept_type(column: str, arrow_type: pa.DataType) -> pa.DataType:
    """The type that a kept column has in the output: without dictionaries and views.

    Raises SpecError if Arrow cannot take single rows of a column of this type.
    """
    plain = dense(arrow_type)
    if "_view" in str(plain):
        plain = _without_views(plain)
    try:
        pa.nulls(1, arrow_type).cast(plain).take(pa.array([0]))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SpecError(
            f"input.keep: column `{column}` is {arrow_type}, and Arrow cannot copy single rows of that type; "
            "convert the column, or leave it out of input.keep"
        ) from error
    return plain


def _without_views(arrow_type: pa.DataType) -> pa.DataType:
    """The type with plain texts, bytes and lists instead of views, which Arrow can read but hardly use."""
    types, inner = pa.types, _without_views
    if types.is_string_view(arrow_type):
        return pa.large_string()
    if types.is_binary_view(arrow_type):
        return pa.large_binary()
    if types.is_map(arrow_type):
        item = arrow_type.item_field.with_type(inner(arrow_type.item_type))
        return pa.map_(arrow_type.key_field.with_type(inner(arrow_type.key_type)), item)
    if types.is_struct(arrow_type):
        return pa.struct([field.with_type(inner(field.type)) for field in arrow_type])
    if types.is_fixed_size_list(arrow_type):
        return pa.list_(_item(arrow_type), arrow_type.list_size)
    if types.is_large_list(arrow_type) or types.is_large_list_view(arrow_type):
        return pa.large_list(_item(arrow_type))
    if types.is_list(arrow_type) or types.is_list_view(arrow_type):
        return pa.list_(_item(arrow_type))
    return arrow_type


def _item(arrow_type: pa.DataType) -> pa.Field:
    return arrow_type.value_field.with_type(_without_views(arrow_type.value_type))


def id_type(arrow_type: pa.DataType) -> pa.DataType:
    """The type that ids have in the output: int64 for whole numbers that always fit in it, else text."""
    kind = dense(storage_type(arrow_type))
    return pa.int64() if pa.types.is_integer(kind) and not pa.types.is_uint64(kind) else pa.string()


def _accepts(kind: str, arrow_type: pa.DataType) -> bool:
    types = pa.types
    text = (
        types.is_string(arrow_type) or types.is_large_string(arrow_type) or types.is_string_view(arrow_type)
    )
    whole = types.is_integer(arrow_type)
    number = whole or types.is_floating(arrow_type)
    if types.is_null(arrow_type):
        return kind != "id"
    if kind == "image":
        return text or _is_binary(arrow_type) or _is_image_struct(arrow_type)
    if kind == "pair of whole numbers":
        return _is_list(arrow_type) and pa.types.is_integer(arrow_type.value_type)
    if kind == "options":
        return text or _is_mapping(arrow_type)
    # pandas turns whole numbers with nulls into a float column: their values are checked row by row.
    return bool({"id": text or whole, "text": text, "whole number": number, "number": number}[kind])


def _is_list(arrow_type: pa.DataType) -> bool:
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(arrow_type) for check in checks)


def _is_mapping(arrow_type: pa.DataType) -> bool:
    """Whether the type is a map or struct of names to single values."""
    if pa.types.is_map(arrow_type):
        return _accepts("text", arrow_type.key_type) and _is_setting(arrow_type.item_type)
    return pa.types.is_struct(arrow_type) and all(_is_setting(field.type) for field in arrow_type)


def _is_setting(arrow_type: pa.DataType) -> bool:
    return pa.types.is_boolean(arrow_type) or _accepts("number", arrow_type) or _accepts("text", arrow_type)


def _is_image_struct(arrow_type: pa.DataType) -> bool:
    if not pa.types.is_struct(arrow_type):
        return False
    leaves = [(field.name, field.type) for field in arrow_type if field.name in ("bytes", "path")]
    types = dict(leaves)
    return (
        len(leaves) == len(types) == 2
        and (pa.types.is_null(types["bytes"]) or _is_binary(types["bytes"]))
        and _accepts("text", types["path"])
    )


def _is_binary(arrow_type: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(check(arrow_type) for check in checks)
