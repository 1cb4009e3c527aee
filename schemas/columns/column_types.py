"""The types that columns of the input may have, and the types in which they are read and kept."""

from collections.abc import Callable, Mapping

import pyarrow as pa

from schemas.columns.cells import is_cell
from schemas.columns.fields import FIELD_KINDS
from schemas.errors import SpecError
from schemas.systems.control_parameters import CONTROL_IMAGES, ENTRY_KEYS, nearest_key
from schemas.wording.nearest import did_you_mean
from schemas.wording.printable import shortened


def storage_type(arrow_type: pa.DataType) -> pa.DataType:
    """The type as which a field's column is read: an extension type's storage, and text for a UUID."""
    if isinstance(arrow_type, pa.UuidType):
        return pa.string()
    return arrow_type.storage_type if isinstance(arrow_type, pa.BaseExtensionType) else arrow_type


def dense(arrow_type: pa.DataType) -> pa.DataType:
    """The type of the values: that of a dictionary's values, else the type itself."""
    return arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type


def kept_type(column: str, arrow_type: pa.DataType) -> pa.DataType:
    """The type in which a kept column is copied: its storage, without dictionaries and views.

    Raises SpecError if Arrow cannot take single rows of a column of this type.
    """
    plain = dense(storage_type(arrow_type))
    if "_view" in str(plain):
        plain = _without_views(plain)
    try:
        pa.nulls(1, storage_type(arrow_type)).cast(plain).take(pa.array([0]))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SpecError(
            f"input.keep: column `{column}` is {arrow_type}, and Arrow cannot copy single rows of that type; "
            "convert the column, or leave it out of input.keep"
        ) from error
    return plain


def common_kept_type(column: str, files: Mapping[str, pa.DataType]) -> pa.DataType:
    """The type that a kept column has in the output: the one to which Arrow promotes those of all files.

    `files`: the column's type by the URI of a file that has it. Raises SpecError, with both types, if two of
    them have no such type.
    """
    first = next(iter(files))
    common = kept_type(column, files[first])
    for uri, arrow_type in files.items():
        kept = kept_type(column, arrow_type)
        try:
            pair = [pa.schema([("column", each)]) for each in (common, kept)]
            common = pa.unify_schemas(pair, promote_options="permissive").field("column").type
            pa.nulls(1, kept).cast(common)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SpecError(
                f"input.keep: column `{column}` is {arrow_type} in {uri} and {files[first]} in {first}, and "
                "no type holds both; write the files with one type, or leave the column out of input.keep"
            ) from error
    return common


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


def fits(field: str, arrow_type: pa.DataType) -> bool:
    """Whether a column of this type can fill a field. Numbers of JSON are no texts: `1e3` would be `1000`."""
    kind, stored = FIELD_KINDS[field], dense(storage_type(arrow_type))
    if is_cell(arrow_type):
        return not (kind in ("text", "id") and pa.types.is_floating(stored))
    return _accepts(kind, stored)


_LIST_KEYS = {
    # An output has the hashes of files beside what was asked for.
    "controls": (*ENTRY_KEYS, CONTROL_IMAGES[0], "sha256"),
    "weights by name": ("name", "weight", "sha256"),
}
"""By kind of field: the keys of the structs in a column of lists."""


def unknown_key(field: str, arrow_type: pa.DataType) -> str:
    """What is wrong with a key of the structs in a column of lists that fills a field; else empty."""
    kind, keys = dense(storage_type(arrow_type)), _LIST_KEYS.get(FIELD_KINDS[field], ())
    if not keys or not _is_list(kind) or not pa.types.is_struct(kind.value_type):
        return ""
    unknown = next((leaf.name for leaf in kind.value_type if leaf.name not in keys), None)
    if unknown is None:
        return ""
    hint = nearest_key(unknown) if FIELD_KINDS[field] == "controls" else did_you_mean(unknown, keys)
    return f"`{shortened(unknown)}`, which is not one of {', '.join(keys)}{hint}"


def needed(field: str) -> str:
    """What a column must have to fill a field, in words."""
    words = {
        "whole number": "whole numbers",
        "number": "numbers",
        "true or false": "booleans",
        "controls": "JSON text, or a list of structs with controlnet and perhaps control_image",
        "id": "text or whole numbers",
        "image": "an image struct<bytes, path>, bytes, or text with a URI",
        "pair of whole numbers": "lists of two whole numbers",
        "options": "JSON text, or a struct or a map of numbers, texts and booleans",
        "weights by name": "JSON text, a list of structs of name and weight, or a struct or a map of numbers",
    }
    return words.get(FIELD_KINDS[field], FIELD_KINDS[field])


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
        return text or _is_mapping(arrow_type, _is_setting)
    if kind == "weights by name":
        return text or _is_mapping(arrow_type, _is_number) or _is_weights(arrow_type)
    if kind == "controls":
        return text or _is_controls(arrow_type)
    if kind == "true or false":
        return bool(types.is_boolean(arrow_type))
    # pandas turns whole numbers with nulls into a float column: their values are checked row by row.
    return bool({"id": text or whole, "text": text, "whole number": number, "number": number}[kind])


def _is_list(arrow_type: pa.DataType) -> bool:
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(arrow_type) for check in checks)


def _is_mapping(arrow_type: pa.DataType, is_value: Callable[[pa.DataType], bool]) -> bool:
    """Whether the type is a map or struct of names to single values."""
    if pa.types.is_map(arrow_type):
        return _accepts("text", arrow_type.key_type) and is_value(arrow_type.item_type)
    return pa.types.is_struct(arrow_type) and all(is_value(field.type) for field in arrow_type)


def _is_weights(arrow_type: pa.DataType) -> bool:
    """Whether the type is a list of structs with a name, a weight, and perhaps more, as an output has it."""
    if not _is_list(arrow_type) or not pa.types.is_struct(arrow_type.value_type):
        return False
    types = {field.name: field.type for field in arrow_type.value_type}
    return (
        types.keys() >= {"name", "weight"}
        and len(types) == arrow_type.value_type.num_fields
        and _accepts("text", types["name"])
        and _is_number(types["weight"])
    )


def _is_controls(arrow_type: pa.DataType) -> bool:
    """Whether the type is a list of structs that each name a ControlNet, as an output has it."""
    if not _is_list(arrow_type) or not pa.types.is_struct(arrow_type.value_type):
        return False
    types = {field.name: field.type for field in arrow_type.value_type}
    numbers = {*ENTRY_KEYS[1:]} & types.keys()
    return (
        "controlnet" in types
        and len(types) == arrow_type.value_type.num_fields
        and _accepts("text", types["controlnet"])
        and all(_is_number(types[name]) for name in numbers)
        and (CONTROL_IMAGES[0] not in types or _accepts("image", types[CONTROL_IMAGES[0]]))
    )


def _is_number(arrow_type: pa.DataType) -> bool:
    return _accepts("number", arrow_type)


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
