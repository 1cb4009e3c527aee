"""The rows of text files, in batches of columns: one prompt a line, comma-separated values, JSON lines."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.intake.text_lines import MAX_LINE_BYTES
from schemas.errors import SpecError
from schemas.wording.amounts import counted
from schemas.wording.printable import listed, shortened

MAX_BLOCKS = 2
"""The blocks of lines whose rows are in memory together."""

JSON_ROWS = 1 << 14
"""The most rows of a batch of JSON, each of which may have keys of its own."""
MAX_COLUMNS = 1_000

Cells = list[str | None]


INT, LONG_INT, FLOAT, BOOL, TEXT = "int", "long int", "float", "bool", "text"
"""The kinds of cells. A long int is one that a float cannot hold."""
_EXACT = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBatch:
    """Neighbouring rows of a text file."""

    num_rows: int
    columns: Mapping[str, Cells]
    """The rows' cells by column, in the order of the file; null for a row without the column."""
    kinds: Mapping[str, set[str]] = field(default_factory=dict)
    """The kinds of JSON values, by column; empty for nulls alone. A column that is absent
    has text."""


Blocks = Iterable[list[str]]
"""A file's lines, in lists of neighbours."""
Reader = Callable[[Blocks, str], Iterator[TextBatch]]
"""A function of a file's lines and its URI, which gives its rows; SpecError where they cannot be read."""


def prompt_lines(blocks: Blocks, uri: str) -> Iterator[TextBatch]:
    """Each line that is not blank is a prompt."""
    for block in blocks:
        prompts: Cells = [line.rstrip("\r") for line in block if line and not line.isspace()]
        yield TextBatch(num_rows=len(prompts), columns={"prompt": prompts})


def comma_separated(blocks: Blocks, uri: str) -> Iterator[TextBatch]:
    """The rows of a CSV file, whose first line names the columns."""
    return _separated(blocks, uri, ",")


def tab_separated(blocks: Blocks, uri: str) -> Iterator[TextBatch]:
    """The rows of a TSV file, which has tabs where CSV has commas."""
    return _separated(blocks, uri, "\t")


def _separated(blocks: Blocks, uri: str, delimiter: str) -> Iterator[TextBatch]:
    csv.field_size_limit(MAX_LINE_BYTES)
    num_blocks, line = 0, 1

    def lines() -> Iterator[str]:
        nonlocal num_blocks
        for block in blocks:
            num_blocks += 1
            yield from (f"{line}\n" for line in block)

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    names: list[str] = []
    rows: list[list[str]] = []
    try:
        for cells in reader:
            if not names and cells:
                names = _column_names(cells, uri)
            elif len(cells) == len(names):
                rows.append(cells)
            elif cells:
                raise SpecError(_ragged(uri, line, cells, names))
            line = reader.line_num + 1
            if num_blocks > MAX_BLOCKS:
                num_blocks = 0
                yield _batch(rows, names)
                rows = []
    except csv.Error as error:
        raise SpecError(f"input.path: {uri} line {line:,} cannot be read: {error}") from error
    yield _batch(rows, names)


def _batch(rows: Sequence[Sequence[str]], names: Sequence[str]) -> TextBatch:
    columns: Iterable[Sequence[str]] = zip(*rows, strict=True) if rows else ([] for _ in names)
    return TextBatch(
        num_rows=len(rows), columns={name: [*cells] for name, cells in zip(names, columns, strict=True)}
    )


def _ragged(uri: str, line: int, cells: Sequence[str], names: Sequence[str]) -> str:
    return (
        f"input.path: {uri} line {line:,} has {counted(len(cells), 'cell')}, and the first line names "
        f"{counted(len(names), 'column')} ({listed(names)}); quote texts that contain the separator"
    )


def _column_names(cells: Sequence[str], uri: str) -> list[str]:
    """The names in a header. pandas leaves that of its index empty."""
    names = [name.strip() or f"column_{number}" for number, name in enumerate(cells, 1)]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise SpecError(
            f"input.path: {uri} has more than one column of the name {listed(twice)} in its first line; "
            "rename all but one"
        )
    _refuse_many_columns(len(names), uri)
    return names


def json_lines(blocks: Blocks, uri: str) -> Iterator[TextBatch]:
    """The rows of a file with a JSON object in each line. Of several equal keys the last one counts."""
    num_lines, names = 0, set[str]()
    for block in blocks:
        objects = [_object(line, num_lines + i, uri) for i, line in enumerate(block, 1) if line.strip()]
        num_lines += len(block)
        for start in range(0, len(objects), JSON_ROWS):
            batch = _json_batch(objects[start : start + JSON_ROWS], uri)
            names.update(batch.columns)
            _refuse_many_columns(len(names), uri)
            yield batch


def _json_batch(objects: Sequence[Mapping[str, Any]], uri: str) -> TextBatch:
    columns: dict[str, Cells] = {}
    kinds: dict[str, set[str]] = {}
    for row, values in enumerate(objects):
        for key, value in values.items():
            name = key if key.isascii() else _as_text(key)
            if name not in columns:
                _refuse_many_columns(len(columns) + 1, uri)
                columns[name], kinds[name] = [None] * len(objects), set()
            if value is not None:
                columns[name][row] = _as_text(value)
                kinds[name].add(_kind(value))
    return TextBatch(num_rows=len(objects), columns=columns, kinds=kinds)


def _refuse_many_columns(num_columns: int, uri: str) -> None:
    if num_columns > MAX_COLUMNS:
        raise SpecError(
            f"input.path: {uri} has more than {MAX_COLUMNS:,} columns; leave out those that nobody needs"
        )


def _object(line: str, number: int, uri: str) -> dict[str, Any]:
    try:
        values = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be read"
        raise SpecError(
            f"input.path: {uri} line {number:,} is not JSON ({reason}): {shortened(line.strip())}"
        ) from error
    if not isinstance(values, dict):
        raise SpecError(
            f"input.path: {uri} line {number:,} is not a JSON object: {shortened(line.strip())}; each line "
            'must be one, such as {"prompt": "an owl"}'
        )
    return values


def _without_nan(constant: str) -> None:
    """Null for NaN, which Python writes for a missing value, although JSON has no such number."""
    if constant != "NaN":
        raise ValueError(constant)


_DECODER = json.JSONDecoder(parse_constant=_without_nan)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, float):
        return FLOAT
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return INT if abs(value) <= _EXACT else LONG_INT
    return TEXT


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        text = value
    elif type(value) in (int, float):
        return repr(value)
    else:
        text = json.dumps(value, ensure_ascii=False)
    # A lone half of a surrogate pair, which JSON can name, is no text in UTF-8.
    return text if text.isascii() else text.encode(errors="replace").decode()
