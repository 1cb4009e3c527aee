"""Which columns of an input fill which fields, and the entries of input.columns that say so."""

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.drafting.sampled_input import SampledInput
from schemas.columns.column_notes import sizes_of_pictures
from schemas.columns.column_types import needed
from schemas.columns.fields import FIELD_KINDS, IMAGE_FIELDS
from schemas.columns.input_columns import candidates
from schemas.errors import SpecError
from schemas.systems.system_table import TASKS
from schemas.wording.printable import listed

ON_THE_WEB = ("http://", "https://")
ADAPTERS = ("loras", "controlnet", "controls", "ip_adapter")
"""The fields that name what a model has besides its checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of input.columns."""

    column: str | None
    """The column that fills the field; None: none does."""
    reason: str
    """Why the spec has to say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenColumns:
    """The columns that a drafted spec reads."""

    fields: Mapping[str, str]
    """The column of each field that the input can fill."""
    entries: Mapping[str, Entry]
    """By field, what darkroom would not do by itself."""


def choose_columns(sampled: SampledInput, prompt_column: str | None) -> ChosenColumns:
    """The columns of the fields; SpecError where nobody can tell which one has the prompts.

    `prompt_column`: the column with the prompts, if the user has named it.
    """
    found = sampled.schemas
    entries = _prompt_entry(sampled, prompt_column) if prompt_column else {}
    own = [name for name in found.names if name in FIELD_KINDS and name not in entries]
    entries |= {name: _idle(reason) for name in own if (reason := _misfit(sampled, name))}
    fields = {name: name for name in own if name not in entries}
    fields |= {field: entry.column for field, entry in entries.items() if entry.column}
    spare = [name for name in found.names if name not in fields.values()]
    for field, columns in candidates(
        found, spare, FIELD_KINDS.keys() - fields.keys() - entries.keys()
    ).items():
        fields[field] = columns[0]
        if len(columns) > 1:
            entries[field] = Entry(column=columns[0], reason=f"it could be {listed(columns[1:])} too")
    for field, reason in _better_unread(sampled, fields).items():
        entries[field] = _idle(reason)
        del fields[field]
    if "prompt" not in fields and not fields.keys() & {*IMAGE_FIELDS}:
        entries |= _only_text(sampled, [name for name in spare if name not in fields.values()])
        fields |= {"prompt": str(entries["prompt"].column)}
    return ChosenColumns(fields=fields, entries=entries)


def _idle(reason: str) -> Entry:
    return Entry(column=None, reason=reason)


def _misfit(sampled: SampledInput, field: str) -> str:
    """Why the column of a field's name cannot fill it; empty if it can."""
    if misfit := sampled.schemas.misfit(field, field):
        return f"the column is {misfit}, and the field needs {needed(field)}"
    return sampled.schemas.unknown_key(field, field) and "its entries have keys that darkroom does not know"


def _better_unread(sampled: SampledInput, fields: Mapping[str, str]) -> dict[str, str]:
    """By field, why a column that could fill it is left unread."""
    reasons = {
        field: "what it names would have to be named under `models` first"
        for field in ADAPTERS
        if field in fields
    }
    if "model" in fields:
        reasons["model"] = "its values would have to be names under `models`"
    tasks = sampled.values(fields["task"]) if "task" in fields else []
    if "task" in fields and not {*tasks} & {*TASKS}:
        reasons["task"] = f"its values would have to be routes; tasks are {', '.join(TASKS)}"
    for field in IMAGE_FIELDS:
        values = sampled.values(fields[field]) if field in fields else []
        if any(value.lower().startswith(ON_THE_WEB) for value in values):
            reasons[field] = "its images are on the web, and darkroom reads files: download them first"
    pictures = sizes_of_pictures(sampled.schemas.names, fields)
    return reasons | dict.fromkeys(pictures, "it looks like the size of a picture that the row names")


def _prompt_entry(sampled: SampledInput, column: str) -> dict[str, Entry]:
    if column not in sampled.schemas.names:
        raise SpecError(
            f"--prompt-column: the input has no column `{column}`; it has {listed(sampled.schemas.names)}"
        )
    if misfit := sampled.schemas.misfit("prompt", column):
        raise SpecError(f"--prompt-column: `{column}` is {misfit}, and prompts are text")
    return {"prompt": Entry(column=column, reason="the column with the prompts")}


def _only_text(sampled: SampledInput, spare: list[str]) -> dict[str, Entry]:
    """The entry for the prompts of an input with a single column of texts."""
    texts = [name for name in spare if not sampled.schemas.misfit("prompt", name)]
    if len(texts) != 1:
        raise SpecError(
            f"no column of the input is called `prompt` or `caption`, and none has images; it has "
            f"{listed(sampled.schemas.names)}. Name the one with the prompts: --prompt-column NAME"
        )
    return {"prompt": Entry(column=texts[0], reason="the only column of texts")}
