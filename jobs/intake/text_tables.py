"""The rows of text files, in batches of columns: one prompt a line, comma-separated values, JSON lines."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.intake.text_lines import MAX_LINE_BYTES
from schemas.errors import SpecError
from schemas.wording.amounts import counted, size_text
from schemas.wording.printable import listed, shortened

MAX_BLOCKS = 2
"""The blocks of lines whose rows are in memory together."""

JSON_ROWS = 1 << 14
"""The most rows of a batch of JSON, each of which may have keys of its own."""
MAX_COLUMNS = 1_000

_REASONS = {
    "field larger than": f"a cell has more than {size_text(MAX_LINE_BYTES)}, which is the most that is read; "
    "perhaps its quote is never closed",
    "unexpected end of data": "a quote is never closed",
    "expected after": "text follows a closing quote; write a quote within quotes twice",
    "new-line character seen": "a cell without quotes has a carriage return; quote it, or end lines "
    "with line feeds",
}
"""What the errors of Python 3.12's csv module mean, by a part of their messages."""
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}

Cells = list[str | None]


INT, LONG_INT, FLOAT, BOOL, TEXT = "int", "long int", "float", "bool", "text"
"""The kinds of cells. A long int is one that a float cannot hold."""
_EXACT = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBatch:
    """Neighbouring rows of a text file."""

    lines: Sequence[int]
    """The number of the line in which each row begins, from 1."""
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
    num_lines = 0
    for block in blocks:
        lines = [number for number, line in enumerate(block) if line and not line.isspace()]
        prompts: Cells = [block[number].rstrip("\r") for number in lines]
        yield TextBatch(lines=[num_lines + 1 + number for number in lines], columns={"prompt": prompts})
        num_lines += len(block)


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
    row_lines: list[int] = []
    try:
        for cells in reader:
            if not names and cells:
                names = _column_names(cells, delimiter, uri)
            elif len(cells) == len(names):
                rows.append(cells)
                row_lines.append(line)
            elif cells:
                raise SpecError(_ragged(uri, line, cells, names))
            line = reader.line_num + 1
            if num_blocks > MAX_BLOCKS:
                num_blocks = 0
                yield _batch(rows, row_lines, names)
                rows, row_lines = [], []
    except csv.Error as error:
        raise SpecError(f"input.path: {uri} line {line:,} cannot be read: {_reason(error)}") from error
    yield _batch(rows, row_lines, names)


def _batch(rows: Sequence[Sequence[str]], lines: Sequence[int], names: Sequence[str]) -> TextBatch:
    columns: Iterable[Sequence[str]] = zip(*rows, strict=True) if rows else ([] for _ in names)
    return TextBatch(
        lines=lines, columns={name: [*cells] for name, cells in zip(names, columns, strict=True)}
    )


def _reason(error: csv.Error) -> str:
    """Why Python's reader gave up, and what to do."""
    message = str(error)
    return next((reason for sign, reason in _REASONS.items() if sign in message), message)


def _ragged(uri: str, line: int, cells: Sequence[str], names: Sequence[str]) -> str:
    return (
        f"input.path: {uri} line {line:,} has {counted(len(cells), 'cell')}, and the first line names "
        f"{counted(len(names), 'column')} ({listed(names)}); quote texts that contain the separator"
    )


def _column_names(cells: Sequence[str], delimiter: str, uri: str) -> list[str]:
    """The names in a header. pandas leaves that of its index empty."""
    if len(cells) == 1:
        _refuse_other_separator(cells[0], delimiter, uri)
    names = [name.strip() or f"column_{number}" for number, name in enumerate(cells, 1)]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise SpecError(
            f"input.path: {uri} has more than one column of the name {listed(twice)} in its first line; "
            "rename all but one"
        )
    _refuse_many_columns(len(names), uri)
    return names


def _refuse_other_separator(header: str, delimiter: str, uri: str) -> None:
    """Raise SpecError for a header that is a single name, and would be several with another separator."""
    others = [sign for sign in _SEPARATORS if sign != delimiter and sign in header]
    if not others:
        return
    endings = {",": "name the file .csv", "\t": "name the file .tsv"}
    way_out = endings.get(others[0], f"write {_SEPARATORS[delimiter]}, and quote texts that contain them")
    raise SpecError(
        f"input.path: {uri} line 1 ({shortened(header)}) seems to have {_SEPARATORS[others[0]]} between the "
        f"columns' names, and its name promises {_SEPARATORS[delimiter]}; {way_out}. If this is a row, put a "
        "line with the columns' names before it"
    )


def json_lines(blocks: Blocks, uri: str) -> Iterator[TextBatch]:
    """The rows of a file with a JSON object in each line. Of several equal keys the last one counts."""
    num_lines, names = 0, set[str]()
    for block in blocks:
        lines = [num_lines + i for i, line in enumerate(block, 1) if line.strip()]
        objects = [_object(block[line - num_lines - 1], line, uri) for line in lines]
        num_lines += len(block)
        for start in range(0, len(objects), JSON_ROWS):
            rows = slice(start, start + JSON_ROWS)
            batch = _json_batch(objects[rows], lines[rows], uri)
            names.update(batch.columns)
            _refuse_many_columns(len(names), uri)
            yield batch


def _json_batch(objects: Sequence[Mapping[str, Any]], lines: Sequence[int], uri: str) -> TextBatch:
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
    return TextBatch(lines=lines, columns=columns, kinds=kinds)


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


class _WrittenFloat(float):
    """A number of JSON that remembers how it was written: as a text, `1e3` must not become `1000.0`."""

    __slots__ = ("text",)

    def __new__(cls, text: str) -> "_WrittenFloat":
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


_DECODER = json.JSONDecoder(parse_constant=_without_nan, parse_float=_WrittenFloat)


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
    elif isinstance(value, _WrittenFloat):
        return value.text
    elif type(value) is int:
        return repr(value)
    else:
        text = json.dumps(value, ensure_ascii=False)
    # A lone half of a surrogate pair, which JSON can name, is no text in UTF-8.
    return text if text.isascii() else text.encode(errors="replace").decode()
