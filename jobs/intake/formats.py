"""The formats in which the rows of an input may be, told by the endings of files' names."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from actors.storage.objects import ListedObject
from jobs.intake.file_signatures import COMPRESSION_ENDINGS
from jobs.intake.text_tables import Reader, comma_separated, json_lines, prompt_lines, tab_separated
from schemas.errors import SpecError
from schemas.wording.printable import listed

PARQUET_ENDINGS = (".parquet", ".parq", ".pq")
"""The endings of Parquet files, in lower or upper case. Files with one of these are not looked at."""
READERS: Mapping[str, Reader] = {
    ".txt": prompt_lines,
    ".csv": comma_separated,
    ".tsv": tab_separated,
    ".jsonl": json_lines,
    ".ndjson": json_lines,
}
"""What reads a text file, by the ending of its name."""
COMPRESSIONS: Mapping[str, str] = {ending: name for name, ending in COMPRESSION_ENDINGS.items()}
"""What a file is compressed with, as pyarrow calls it, by a further ending."""
_AS_LINES = "write one JSON object a line to a .jsonl file, for example with jq -c '.[]'"
_AS_TABLE = "save the sheet as CSV in UTF-8"
_AS_PARQUET = "write it as Parquet"
_AS_COLUMN = "a column `image` of a table names images"
_AS_ZIP = "unpack it, or pack it again as .gz"
_WAYS_OUT: Mapping[str, str] = {
    **dict.fromkeys((".json", ".geojson"), _AS_LINES),
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), _AS_TABLE),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro", ".pkl", ".npz"), _AS_PARQUET),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp"), _AS_COLUMN),
    **dict.fromkeys((".zip", ".xz", ".7z", ".tar", ".tgz", ".lz4", ".br"), _AS_ZIP),
}
"""What to do with a file that is not read, by the ending of its name."""

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


def has_header(uri: str) -> bool:
    """Whether the first line of the file of this name gives its columns' names."""
    by_name = text_format(uri)
    return by_name is not None and by_name.read in (comma_separated, tab_separated)


def what_to_do(uri: str) -> str:
    """What to do with a file that is neither Parquet nor a text file by its name."""
    endings = f"{listed([*READERS])}, also with {listed([*COMPRESSIONS])} behind it, or Parquet"
    way_out = _WAYS_OUT.get(posixpath.splitext(uri.lower())[1], "give it the ending of what it has")
    return f"darkroom reads {endings}; {way_out}"


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
