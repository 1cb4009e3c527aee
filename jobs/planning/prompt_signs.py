"""Signs in prompts by which other tools load networks or steer the sampling, and which here are text.

A plan does not read all texts: it looks at the first rows of a few files.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from actors.inputs.column_reader import BATCH_ROWS
from actors.inputs.input_file import InputFile, RowBatch
from actors.storage.stores import Stores
from jobs.survey.survey import Survey, SurveyedFile
from schemas.columns.fields import TEXT_FIELDS
from schemas.columns.input_columns import ColumnMap
from schemas.errors import SpecError

MAX_FILES = 4
"""The files that are looked into: the first, the last, and others at even distances between them."""
MAX_ROWS = BATCH_ROWS
"""The rows of each of these files that are looked at, from its first one on."""
MAX_BYTES = 64 << 20
"""The bytes of texts after which no further batch of a file is read."""

SIGNS: Mapping[str, tuple[str, str]] = {
    "<lora:...>": (r"<(?:lora|lyco|hypernet):[^<>]+>", "no LoRA is applied; see the column loras"),
    "embedding:...": (r"\bembedding:\S", "no embedding is loaded; see models.NAME.embeddings"),
    "BREAK": (r"\bBREAK\b", "the prompt is not broken there"),
    "[from:to:when]": (r"\[[^\[\]:]*:[^\[\]:]*:\s*[0-9]*\.?[0-9]+\s*\]", "nothing changes between steps"),
    "(text:1.2)": (r"\([^()]+:\s*[0-9]*\.?[0-9]+\s*\)", "it weighs nothing; see prompt_weights"),
}
"""The signs: the pattern of each, and what darkroom does not do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSigns:
    """How many rows have each sign in one of their texts."""

    num_rows: int = 0
    """The rows that were looked at."""
    counts: tuple[tuple[str, int], ...] = ()
    """(sign, number of rows) for each sign that was seen, in the order of SIGNS."""


NO_SIGNS = PromptSigns()


def count_signs(survey: Survey, stores: Stores) -> PromptSigns:
    """The signs in the texts of the first rows of a few of the input's files."""
    counts: Counter[str] = Counter()
    num_rows = 0
    for file in _chosen(survey.files):
        uri = file.stored.uri
        try:
            source = stores.of(file.rows_uri).open(file.rows_uri)
            with InputFile(source, survey.job.columns, uri) as opened:
                num_rows += _count(opened, survey.job.columns, counts)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise SpecError(f"input.path: {uri} cannot be read: {error}") from error
    return PromptSigns(
        num_rows=num_rows, counts=tuple((sign, counts[sign]) for sign in SIGNS if counts[sign])
    )


def _chosen(files: Sequence[SurveyedFile]) -> list[SurveyedFile]:
    last = len(files) - 1
    numbers = {round(i * last / (MAX_FILES - 1)) for i in range(MAX_FILES)}
    return [files[number] for number in sorted(numbers)]


def _count(opened: InputFile, columns: ColumnMap, counts: Counter[str]) -> int:
    """Count the rows with each sign among the file's first rows; the number of rows that were looked at."""
    num_rows = num_bytes = 0
    if not any(field in columns.fields for field in TEXT_FIELDS):
        return 0
    for batch in opened.read_texts():
        texts = [column.slice(0, MAX_ROWS - num_rows) for column in _texts(batch)]
        num_rows += len(texts[0])
        num_bytes += sum(column.nbytes for column in texts)
        for sign, (pattern, _) in SIGNS.items():
            counts[sign] += _rows_with(texts, pattern)
        if num_rows >= MAX_ROWS or num_bytes >= MAX_BYTES:
            break
    return num_rows


def _texts(batch: RowBatch) -> list[pa.Array]:
    return [batch.fields[field] for field in TEXT_FIELDS if field in batch.fields]


def _rows_with(texts: Sequence[pa.Array], pattern: str) -> int:
    matches = [pc.match_substring_regex(column, pattern).fill_null(False) for column in texts]
    either = matches[0]
    for match in matches[1:]:
        either = pc.or_(either, match)
    return int(either.true_count)
