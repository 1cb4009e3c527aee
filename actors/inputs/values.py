"""A column of the input in darkroom's type for it, and the errors of rows whose value cannot be used."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.inputs.texts import (
    MAX_KEPT_BYTES,
    MAX_NAME_BYTES,
    Problems,
    invalid_value_problems,
    is_text,
    max_text_bytes,
    nulled,
    texts_and_problems,
)
from actors.inputs.value_sizes import size_problems
from actors.storage.uris import not_a_place
from schemas.columns.cells import value_reader
from schemas.columns.column_types import dense, fits, id_type, kept_type, needed
from schemas.columns.fields import FIELD_KINDS, TEXT_FIELDS
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import RowError
from schemas.systems.control_parameters import ENTRY_KEYS
from schemas.systems.schedulers import options_text
from schemas.wording.printable import shortened

MAX_KEPT_VALUE_BYTES = 16 << 20
"""The largest value in a kept column that is not text. An image of eight megapixels fits."""


def presence(array: pa.Array) -> pa.Array:
    """A column of texts that shows only which rows have a value: they have an empty text, the others null."""
    return pc.if_else(array.is_valid(), "", pa.scalar(None, pa.string()))


def as_kept(
    array: pa.Array, name: str, arrow_type: pa.DataType, output_type: pa.DataType
) -> tuple[pa.Array, Problems]:
    """(values, problems) of a kept column, whose type is `arrow_type` in the file. The values fit its type in
    the output."""
    array = _as_storage(array)
    if is_text(array.type):
        return texts_and_problems(array, name, MAX_KEPT_BYTES)
    plain = kept_type(name, arrow_type)
    if "_view" in str(array.type):
        # pyarrow 26 cannot take rows of views. Views have no dictionaries here, so nothing is unfolded.
        array = array.cast(plain)
    problems = size_problems(array, name, MAX_KEPT_VALUE_BYTES, "kept_too_large")
    array = nulled(array, problems)
    problems |= invalid_value_problems(array, name, plain)
    array = nulled(array, problems)
    if plain != output_type:
        problems |= _promotion_problems(array, name, output_type)
    return nulled(array, problems), problems


def _promotion_problems(array: pa.Array, name: str, output_type: pa.DataType) -> Problems:
    """The errors of rows whose value the output's type cannot hold: 2**53 + 1 if other files have doubles."""
    problems: Problems = {}
    for row in range(len(array)):
        try:
            array.slice(row, 1).cast(output_type)
        except pa.ArrowInvalid as error:
            message = f"`{name}` is {output_type} in the output, which cannot hold this value: {error}"
            problems[row] = RowError("invalid_value", message)
    return problems


def as_kind(array: pa.Array, field: str) -> tuple[pa.Array, Problems]:
    """(values, problems) of a field: its column in the type of the field's kind."""
    array = _as_storage(array)
    if FIELD_KINDS[field] == "image":
        return _as_image(array, field)
    if is_text(array.type):
        return texts_and_problems(array, field, max_text_bytes(field))
    problems: Problems = {}
    if FIELD_KINDS[field] in ("options", "weights by name", "controls"):
        problems = size_problems(array, field, MAX_NAME_BYTES, "text_too_long")
        array = nulled(array, problems)
    if pa.types.is_nested(array.type):
        problems |= invalid_value_problems(array, field, dense(array.type))
    return _as_values(nulled(array, problems), FIELD_KINDS[field]), problems


def cells_as_kind(array: pa.Array, field: str) -> tuple[pa.Array, Problems]:
    """(values, problems) of a field whose column has cells. An empty one is null, except as a prompt."""
    array = _as_storage(array)
    if not is_text(array.type) and not fits(field, array.type):
        array = array.cast(pa.string())
    if not is_text(array.type) or field in TEXT_FIELDS:
        return as_kind(array, field)
    array = array.cast(pa.string())
    blank = pc.equal(pc.utf8_trim_whitespace(array), "")
    array = pc.if_else(blank, pa.scalar(None, pa.string()), array)
    if FIELD_KINDS[field] == "weights by name":
        array = pa.array([text and _as_object(text) for text in array.to_pylist()], pa.string())
    if (reader := value_reader(field)) is None:
        return as_kind(array, field)
    return _read_cells(pc.utf8_trim_whitespace(array), field, *reader)


def _read_cells(
    array: pa.Array, field: str, arrow_type: pa.DataType, read: Callable[[str], Any]
) -> tuple[pa.Array, Problems]:
    """(values, problems) of a field's texts, of which `read` makes values or raises ValueError."""
    try:
        if not pa.types.is_nested(arrow_type):
            return array.cast(arrow_type), {}  # This is fast, and mostly all of them fit.
    except pa.ArrowInvalid:
        pass
    values, problems = [], {}
    for row, text in enumerate(array.to_pylist()):
        try:
            values.append(None if text is None else read(text))
        except ValueError:
            values.append(None)
            message = f"`{field}` is {shortened(text)!r}, and it needs {needed(field)}"
            problems[row] = RowError("invalid_parameter", message)
    return pa.array(values, arrow_type), problems


def _as_storage(array: pa.Array) -> pa.Array:
    """The column in its `storage_type`."""
    if isinstance(array.type, pa.UuidType):
        return pa.array([uuid and str(uuid) for uuid in array.to_pylist()], pa.string())
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _as_values(array: pa.Array, kind: str) -> pa.Array:
    """A column in the type of its field's kind. `map_columns` has checked that the column can have this type.

    Columns of texts and images are read by other functions.
    """
    if kind == "text":
        return array.cast(pa.string())
    if kind == "id":
        return array.cast(id_type(array.type))
    if kind == "options":
        return _as_options(array)
    if kind == "weights by name":
        return _as_weights(array)
    if kind == "controls":
        return _as_controls(array)
    array = array.cast(dense(array.type))
    if kind == "true or false":
        return array.cast(pa.bool_())
    if kind == "pair of whole numbers":
        return array.cast(pa.list_(_whole(getattr(array.type, "value_type", array.type))))
    if kind == "whole number" and not pa.types.is_floating(array.type):
        return array.cast(_whole(array.type))
    return _widened(array)


def _widened(array: pa.Array) -> pa.Array:
    """Numbers as float64: those of half and single precision by their shortest decimal.

    A plain cast would make 0.699999988 of the 0.7 that somebody wrote, and of 10 steps at this strength 6.
    """
    if not _is_low_precision(array.type):
        return array.cast(pa.float64(), safe=False)
    # numpy's text of a float is the shortest one that is read back as the same float.
    numbers = array.to_numpy(zero_copy_only=False).astype(str).astype(np.float64)
    return pa.array(numbers, mask=array.is_null().to_numpy(zero_copy_only=False))


def _whole(arrow_type: pa.DataType) -> pa.DataType:
    """int64, or uint64 for a column of that type: the checks can then quote a value that is too large."""
    return pa.uint64() if pa.types.is_uint64(arrow_type) else pa.int64()


def _as_options(array: pa.Array) -> pa.Array:
    """Each row's options as JSON. A column of texts stays as it is: the checks parse it."""
    if pa.types.is_map(array.type):
        rows = [None if pairs is None else dict(pairs) for pairs in array.to_pylist()]
        of_type = {name: array.type.item_type for row in rows if row for name in row}
    elif pa.types.is_struct(array.type):
        rows, of_type = array.to_pylist(), {field.name: field.type for field in array.type}
    else:
        return array.cast(pa.string())
    read = _from_text if pa.types.is_map(array.type) and is_text(array.type.item_type) else _shortest
    options = [row and {name: read(value, of_type[name]) for name, value in row.items()} for row in rows]
    return pa.array([None if row is None else options_text(row) for row in options], pa.string())


def _as_weights(array: pa.Array) -> pa.Array:
    """Each row's weights as a JSON object. It may be wrong, with a name twice or NaN: the checks parse it.

    A column of texts stays as it is.
    """
    kind, rows = array.type, array.to_pylist()
    if pa.types.is_map(kind):
        of_rows = [
            row and [(name, _shortest(weight, kind.item_type)) for name, weight in row] for row in rows
        ]
    elif pa.types.is_struct(kind):
        of_rows = [
            row and [(leaf.name, _shortest(row[leaf.name], leaf.type)) for leaf in kind] for row in rows
        ]
    elif pa.types.is_nested(kind):
        weight = kind.value_type.field("weight").type
        of_rows = [
            row and [(each["name"], _shortest(each["weight"], weight)) for each in row if each]
            for row in rows
        ]
    else:
        return array.cast(pa.string())
    return pa.array([None if row is None else _object_text(row) for row in of_rows], pa.string())


def _as_object(text: str) -> str:
    """The text; a JSON list of objects with a name and a weight, as an output has it, as an object."""
    if not text.lstrip().startswith("["):
        return text
    try:
        pairs = [(str(each["name"]), each["weight"]) for each in json.loads(text)]
    except (ValueError, RecursionError, TypeError, KeyError):
        return text  # The checks say what is wrong with it.
    return _object_text(pairs)


def _as_controls(array: pa.Array) -> pa.Array:
    """Each row's ControlNets as a JSON list of objects, which the checks parse. Texts stay as they are."""
    if not pa.types.is_nested(array.type):
        return array.cast(pa.string())
    leaves = [leaf for leaf in array.type.value_type if leaf.name in ENTRY_KEYS]
    rows = [
        row
        and [{leaf.name: _shortest(each[leaf.name], leaf.type) for leaf in leaves} for each in row if each]
        for row in array.to_pylist()
    ]
    return pa.array([None if row is None else json.dumps(row) for row in rows], pa.string())


def _object_text(pairs: Iterable[tuple[str | None, object]]) -> str:
    """The JSON object with these pairs, also where a name is there twice."""
    members = (f"{json.dumps(name or '')}:{json.dumps(value)}" for name, value in pairs)
    return f"{{{','.join(members)}}}"


def _shortest(value: object, arrow_type: pa.DataType) -> object:
    """The value; a number of half or single precision by its shortest decimal."""
    if value is None or not _is_low_precision(arrow_type):
        return value
    return float(str(arrow_type.to_pandas_dtype()(value)))


def _is_low_precision(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_float16(arrow_type) or pa.types.is_float32(arrow_type))


def _from_text(value: str | None, _: pa.DataType) -> object:
    """The value of one entry in a map of texts, which has numbers and booleans as JSON writes them."""
    try:
        return json.loads(value) if value is not None else None
    except (ValueError, RecursionError):
        return value


def _as_image(array: pa.Array, field: str) -> tuple[pa.Array, Problems]:
    data: pa.Array = pa.nulls(len(array), pa.binary())
    path: pa.Array = pa.nulls(len(array), pa.string())
    problems: Problems = {}
    absent = array.is_null()
    if pa.types.is_struct(array.type):
        names = {leaf.name for leaf in array.type}
        data = pc.struct_field(array, "bytes").cast(pa.binary()) if "bytes" in names else data
        if "path" in names:
            path, problems = _as_paths(pc.struct_field(array, "path"), field)
        if names >= {"bytes", "path"}:
            # Some writers store a struct of two nulls for a row without an image.
            absent = pc.and_(data.is_null(), path.is_null())
    elif is_text(array.type):
        path, problems = _as_paths(array, field)
    else:
        data = array.cast(pa.binary())
    struct = pa.StructArray.from_arrays([data, path], fields=list(IMAGE_TYPE), mask=absent)
    return struct, problems


def _as_paths(array: pa.Array, field: str) -> tuple[pa.Array, Problems]:
    if not is_text(array.type):
        return array.cast(pa.string()), {}
    paths, problems = texts_and_problems(array, field, MAX_NAME_BYTES)
    # The beginning of a text that is too long is still there.
    return paths, {row: not_a_place(paths[row].as_py()) or problem for row, problem in problems.items()}


def is_present(array: pa.Array) -> npt.NDArray[np.bool_]:
    """For each row, whether it has a value."""
    present: npt.NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return present
