"""The Parquet files of a folder, by their names' endings or by their last bytes."""

import posixpath
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from actors.storage.objects import ListedObject
from jobs.intake.formats import PARQUET_ENDINGS
from jobs.intake.input_stores import Source

MAGIC = b"PAR1"
"""The bytes with which a Parquet file begins and ends."""
MAX_LOOKS = 256
"""The files of one ending that are looked at. If none of them is a Parquet file, the others are none either:
a folder may have millions of pictures."""
LOOKS_AT_ONCE = 16


def split_parquet(
    files: Iterable[ListedObject], storage: Source
) -> tuple[list[ListedObject], list[ListedObject]]:
    """(Parquet files, others): the files of a folder, each list in the order of the URIs."""
    by_ending: defaultdict[str, list[ListedObject]] = defaultdict(list)
    for file in files:
        by_ending[posixpath.splitext(file.uri)[1].lower()].append(file)
    parquet: list[ListedObject] = []
    others: list[ListedObject] = []

    def ends_with_magic(file: ListedObject) -> bool:
        return storage.read_tail(file.uri, len(MAGIC)).data == MAGIC

    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        for ending, alike in by_ending.items():
            if ending in PARQUET_ENDINGS:
                parquet += alike
                continue
            looks = [*pool.map(ends_with_magic, alike[:MAX_LOOKS])]
            if any(looks):
                looks += pool.map(ends_with_magic, alike[MAX_LOOKS:])
            looks += [False] * (len(alike) - len(looks))
            for file, is_parquet in zip(alike, looks, strict=True):
                (parquet if is_parquet else others).append(file)
    return sorted(parquet, key=_uri), sorted(others, key=_uri)


def _uri(file: ListedObject) -> str:
    return file.uri
