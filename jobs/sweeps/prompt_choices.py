"""The choices in the prompts of a sweep's rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.sweeps.axes import SweptField
from jobs.sweeps.prompt_templates import Template, parsed
from jobs.sweeps.sweep_file import SweepFile
from jobs.sweeps.word_lists import WordLists
from schemas.columns.fields import TEXT_FIELDS
from schemas.errors import SpecError
from schemas.spec.strict_yaml import Location
from schemas.wording.printable import shortened


@dataclass(frozen=True, slots=True, kw_only=True)
class RowNames:
    """What the choices of neighbouring rows depend on, and where the rows are."""

    names: Sequence[str]
    """The ids of the table's rows of which these are made."""
    words: Mapping[str, Sequence[str]]
    """The rows' own words, by the swept list."""
    source_of: Callable[[int], str]
    """Where the table's row is of which a row is made, for messages."""


class PromptChoices:
    """What makes the choices, and checks that they can be made."""

    def __init__(self, sweep: SweepFile, lists: WordLists, swept: Iterable[SweptField]) -> None:
        """SpecError for a prompt of the sweep's own in which no choice can be made."""
        swept = [*swept]
        self._sweep = sweep
        self._lists = lists
        self._words = {field.name: field.at for field in swept if field.is_words}
        self._picks = sweep.spec.choices == "pick"
        for at, text in _own_texts(sweep, swept) if self._picks else ():
            self._template(text, sweep.source(*at))

    def choose(self, columns: dict[str, pa.Array], rows: RowNames) -> None:
        """Replace the columns of prompts by those with a choice made at each place.

        A choice depends on the name of the table's row, the seed and the prompt. So rows that differ in
        another value, such as the guidance scale, have the same prompt.
        """
        if not self._picks:
            return
        seeds = columns["seed"].to_pylist() if "seed" in columns else [None] * len(rows.names)
        of_rows = [*zip(rows.names, seeds, *rows.words.values(), strict=True)]
        for field in TEXT_FIELDS:
            if field in columns:
                columns[field] = self._chosen(field, columns[field].to_pylist(), of_rows, rows)

    def _chosen(
        self, field: str, texts: Sequence[str | None], of_rows: Sequence[tuple[Any, ...]], rows: RowNames
    ) -> pa.Array:
        """The rows' prompts. `of_rows`: each row's name, seed and words, which decide its choices."""
        made: dict[tuple[Any, ...], str | None] = {}
        for i, (text, of_row) in enumerate(zip(texts, of_rows, strict=True)):
            if (text, of_row) not in made:
                made[text, of_row] = text and self._choose(field, text, of_row, rows, i)
        return pa.array([made[each] for each in zip(texts, of_rows, strict=True)], pa.string())

    def _choose(self, field: str, text: str, of_row: tuple[Any, ...], rows: RowNames, i: int) -> str:
        template = self._template(text, rows.source_of(i))
        if template.is_plain:
            return template.plain_text
        name, seed, *words = of_row
        try:
            return self._lists.rendered(
                template, f"{name}\0{seed}\0{field}\0{text}", dict(zip(rows.words, words, strict=True))
            )
        except ValueError as error:
            raise SpecError(f"{rows.source_of(i)}: the prompt {shortened(text)!r}: {error}") from error

    def refuse_idle_words(self) -> None:
        """Raise SpecError for a swept list that no prompt so far has named."""
        for name, at in self._words.items():
            if name not in self._lists.named:
                raise self._sweep.error(at, f"no prompt has __{name}__, so its words would change nothing")

    def _template(self, text: str, source: str) -> Template:
        """The template that a prompt is, whose lists are read."""
        source = f"{source}: the prompt {shortened(text)!r}"
        try:
            template = parsed(text)
        except ValueError as error:
            raise SpecError(f"{source}: {error}; choices: off reads all prompts as text") from error
        self._lists.check(template, source, self._words)
        return template


def _own_texts(sweep: SweepFile, swept: Iterable[SweptField]) -> Iterator[tuple[Location, str]]:
    """The prompts and the words of a sweep that are not in its table, each with its place in the file."""
    yield from ((("set", field), text) for field in TEXT_FIELDS if (text := sweep.spec.set.get(field)))
    for field in swept:
        if field.is_words or field.name in TEXT_FIELDS:
            yield from (((*field.at, i), text) for i, text in enumerate(field.values) if text)
