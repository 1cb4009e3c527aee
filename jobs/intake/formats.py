"""The formats in which the rows of an input may be, told by the endings of files' names."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from actors.storage.objects import ListedObject
from jobs.intake.text_tables import Reader, comma_separated, json_lines, prompt_lines, tab_separated
from schemas.errors import SpecError
from schemas.wording.printable import listed

READERS: Mapping[str, Reader] = {
    ".txt": prompt_lines,
    ".csv": comma_separated,
    ".tsv": tab_separated,
    ".jsonl": json_lines,
    ".ndjson": json_lines,
}
"""What reads a text file, by the ending of its name."""
COMPRESSIONS: Mapping[str, str] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""What a file is compressed with, as pyarrow calls it, by a further ending."""

_File = TypeVar("_File", bound=ListedObject)


class TextFormat(NamedTuple):
    """How a text file is read."""

    read: Reader
    compression: str | None


def text_format(uri: str) -> TextFormat | None:
    """How the file of this name is read; None for one that is no text file by its name."""
    stem, ending = posixpath.splitext(uri.lower())
    compression = COMPRESSIONS.get(ending)
    if compression:
        ending = posixpath.splitext(stem)[1]
    return TextFormat(READERS[ending], compression) if ending in READERS else None


def split_texts(files: Sequence[_File], folder: str) -> tuple[list[_File], list[_File]]:
    """(text files, others) of a folder without Parquet files.

    SpecError where they have several formats: a README.txt beside rows.csv has no prompts.
    """
    formats = [text_format(file.uri) for file in files]
    readers = {each.read for each in formats if each}
    if len(readers) > 1:
        examples = [
            next(file.uri for file, each in zip(files, formats, strict=True) if each and each.read == read)
            for read in readers
        ]
        names = sorted(uri.removeprefix(f"{folder}/") for uri in examples)
        raise SpecError(
            f"input.path: {folder} has text files of several formats, such as {listed(names)}; name those "
            f"that have the rows with a pattern, such as {folder}/*{posixpath.splitext(names[0])[1]}"
        )
    texts = [file for file, each in zip(files, formats, strict=True) if each]
    return texts, [file for file, each in zip(files, formats, strict=True) if not each]
