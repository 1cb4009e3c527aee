"""What the plan says about the input's columns: which are read, as what, and which are not."""

import re
from collections.abc import Iterable, Mapping, Sequence

from schemas.columns.column_types import needed
from schemas.columns.fields import FIELD_KINDS, used_fields
from schemas.columns.input_columns import ColumnMap
from schemas.columns.input_schemas import InputSchemas
from schemas.spec.job_spec import JobSpec
from schemas.wording.foreign_names import field_meant
from schemas.wording.nearest import did_you_mean
from schemas.wording.printable import listed

_NAMES_PICTURE = re.compile(r"url|uri|path|file_?name", re.IGNORECASE)
"""The name of a column that tells where a picture is, as sets that were scraped from the web have it."""


def column_notes(found: InputSchemas, columns: ColumnMap, spec: JobSpec) -> list[str]:
    """The notes, a line each. No column is read, or left unread, without a word."""
    notes = [f"column `{column}` is read as `{field}`" for field, column in columns.recognised.items()]
    notes += [
        f"column `{column}` is read from the names of folders ({column}=...)"
        for column in columns.columns()
        if column in found.folder_types
    ]
    own = [field for field, column in columns.fields.items() if field == column]
    notes.append(f"columns read: {listed(own)}" if own else "columns read: none by its own name")
    sweeps = [name for name in columns.keep if name not in spec.input.keep]
    if sweeps:
        notes.append(f"columns of a sweep, which the output keeps: {listed(sweeps)}")
    unread = [name for name in found.names if name not in columns.columns()]
    reasons = {name: _reason(name, found, columns, spec) for name in unread}
    if unread:
        # What may be a mistake comes first, because a long list is cut.
        ordered = sorted(unread, key=lambda name: not reasons[name])
        notes.append(f"columns not read: {listed([f'{name}{reasons[name]}' for name in ordered])}")
    return notes + _size_note(found, columns, spec)


def sizes_of_pictures(names: Sequence[str], fields: Mapping[str, str]) -> list[str]:
    """Those of `width` and `height` among the fields that may be of pictures that the rows name.

    `names`: those of all columns. Sets that were scraped from the web have such sizes.
    """
    return [side for side in ("width", "height") if side in fields] if _pictures(names) else []


def _pictures(names: Iterable[str]) -> list[str]:
    return [name for name in names if _NAMES_PICTURE.search(name)]


def _size_note(found: InputSchemas, columns: ColumnMap, spec: JobSpec) -> list[str]:
    """A note if the columns of sizes may be those of pictures that the rows name."""
    sides = [
        side for side in sizes_of_pictures(found.names, columns.fields) if side not in spec.input.columns
    ]
    if not sides:
        return []
    unread = ", ".join(f"{side}: null" for side in sides)
    return [
        f"{' and '.join(sides)}: read as the size of the image to be made; if it is that of the picture in "
        f"`{_pictures(found.names)[0]}`, set input.columns: {{{unread}}}"
    ]


def _reason(column: str, found: InputSchemas, columns: ColumnMap, spec: JobSpec) -> str:
    """Why a column with a telling name is not read, or the field that was perhaps meant; empty for others."""
    field = field_meant(column, FIELD_KINDS)
    if field is None:
        return did_you_mean(column, FIELD_KINDS)
    if field in spec.input.columns:
        return ""
    if field not in used_fields(spec):
        return f" (no route of this job reads {'it' if field == column else f'`{field}`'})"
    if field in columns.fields:
        return f" (`{field}` is read from `{columns.fields[field]}`)"
    if misfit := found.misfit(field, column):
        return f" (it is {misfit}, and `{field}` needs {needed(field)})"
    return f" (as the name of a folder it cannot be `{field}`)"
