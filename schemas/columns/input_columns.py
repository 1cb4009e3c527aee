"""Which input column fills which field of a row: by the field's name, by the spec, or by a foreign name."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from schemas.columns.column_types import needed
from schemas.columns.fields import FIELD_KINDS
from schemas.columns.input_schemas import InputSchemas
from schemas.errors import SpecError
from schemas.spec.job_spec import InputSpec
from schemas.wording.foreign_names import field_meant
from schemas.wording.nearest import did_you_mean
from schemas.wording.printable import listed


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMap:
    """The columns that a job reads."""

    fields: Mapping[str, str]
    """The column of each field that the input has: field to column."""
    recognised: Mapping[str, str]
    """Those entries of `fields` whose column has a foreign name; the plan prints them."""
    keep: Mapping[str, pa.DataType]
    """The kept columns, which are copied to the output, each with its type there."""
    id_type: pa.DataType
    """The type that ids have in the output."""

    def columns(self) -> list[str]:
        """Every column that workers read, each once: the fields' columns, then the kept columns."""
        return list(dict.fromkeys([*self.fields.values(), *self.keep]))


def map_columns(
    found: InputSchemas, spec: InputSpec, used: Collection[str] = frozenset(FIELD_KINDS)
) -> ColumnMap:
    """The column of each of the fields that the job has use for, and the kept columns.

    Raises SpecError if a column that the spec names is missing, or if a file lacks a column that others have,
    or has it with a type that does not fit its field.
    """
    names = found.names
    _check_spec(spec, names)
    fields = {field: column for field, column in spec.columns.items() if column is not None}
    spare = [name for name in names if name not in fields.values()]
    fields |= {name: name for name in spare if name in FIELD_KINDS and name not in spec.columns}
    recognised = _recognise(found, spare, {*used} - {*fields, *spec.columns})
    fields |= recognised
    fields = {field: fields[field] for field in FIELD_KINDS if field in fields and field in used}
    for column in dict.fromkeys([*fields.values(), *spec.keep]):
        found.require(column)
    for field, column in fields.items():
        if misfit := found.misfit(field, column):
            raise SpecError(
                f"column `{column}` is {misfit}, but the field `{field}` needs {needed(field)}; convert it, "
                f"name another column with input.columns: {{{field}: ...}}, or leave the field unread with "
                f"{{{field}: null}}"
            )
        if unknown := found.unknown_key(field, column):
            raise SpecError(
                f"column `{column}`: its entries have {unknown}; rename or remove it, or leave the field "
                f"unread with input.columns: {{{field}: null}}"
            )
    return ColumnMap(
        fields=fields,
        recognised=recognised,
        keep={column: found.kept_type(column) for column in spec.keep},
        id_type=found.id_type(fields["row_id"]) if "row_id" in fields else pa.string(),
    )


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
    return f"the input has no column `{column}`{did_you_mean(column, names)}; it has {listed(names)}"


def _recognise(found: InputSchemas, spare: list[str], missing: Collection[str]) -> dict[str, str]:
    """The columns that have a foreign name of a missing field, by field."""
    recognised = {}
    for field, columns in candidates(found, spare, missing).items():
        if len(columns) > 1:
            raise SpecError(
                f"both `{columns[0]}` and `{columns[1]}` could be the field `{field}`; "
                f"choose one with input.columns: {{{field}: {columns[1]}}}"
            )
        recognised[field] = columns[0]
    return recognised


def candidates(found: InputSchemas, spare: Iterable[str], missing: Collection[str]) -> dict[str, list[str]]:
    """Those of the columns `spare` that have a foreign name of a missing field, by field.

    A foreign name is a guess, so a column whose type does not fit is not taken. Nor is the name of a folder
    as an id, because all rows of the folder would have the same.
    """
    columns_by_field: dict[str, list[str]] = {}
    for column in spare:
        field = field_meant(column, FIELD_KINDS)
        if field is None or field not in missing or found.misfit(field, column):
            continue
        if field != "row_id" or column not in found.folder_types:
            columns_by_field.setdefault(field, []).append(column)
    return columns_by_field
