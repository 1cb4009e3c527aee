"""What a text file really is, told by its first bytes: people give files names that do not fit."""

import posixpath
import re
from typing import NamedTuple

from schemas.errors import SpecError

COMPRESSION_ENDINGS = {"gzip": ".gz", "zstd": ".zst", "bz2": ".bz2"}
"""The endings of names by what the file is compressed with, as pyarrow calls it."""
HEAD_BYTES = 16
"""The first bytes of a file that are looked at."""


class _Signature(NamedTuple):
    first_bytes: re.Pattern[bytes]
    kind: str
    way_out: str


_COMPRESSED = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
}
_OTHERS = (
    _Signature(re.compile(rb"\xfd7zXZ\x00"), "compressed with xz", "unpack it, for example with unxz"),
    _Signature(re.compile(rb"PK[\x03\x05]"), "a ZIP archive or a workbook", "unpack it, or save it as CSV"),
    _Signature(
        re.compile(rb"PAR1[\x00-\x1f]"), "a Parquet file without its end", "copy it again; it is not whole"
    ),
    _Signature(
        re.compile(rb"\xff\xfe|\xfe\xff"), "in UTF-16", "write it as UTF-8, with iconv -f UTF-16 -t UTF-8"
    ),
)


def refuse_other_content(head: bytes, compression: str | None, uri: str) -> None:
    """Raise SpecError for a file whose first bytes are not those of what its name says.

    `compression`: what the file is compressed with by its name, as pyarrow calls it.
    """
    actual = next((name for name, first_bytes in _COMPRESSED.items() if first_bytes.match(head)), None)
    if actual != compression and (actual or (head and compression)):
        name = posixpath.basename(uri)
        stem = posixpath.splitext(name)[0] if compression else name
        content = f"compressed with {actual}" if actual else "not compressed"
        ending = COMPRESSION_ENDINGS[actual] if actual else ""
        raise SpecError(f"input.path: {uri} is {content}, unlike its name; rename it to {stem}{ending}")
    if compression is None:
        _refuse_no_text(head, uri)


def refuse_packed_twice(head: bytes, uri: str) -> None:
    """Raise SpecError for a compressed file whose unpacked content begins with what is no text in UTF-8."""
    if any(first_bytes.match(head) for first_bytes in _COMPRESSED.values()):
        raise SpecError(f"input.path: {uri} is compressed twice; unpack it once")
    _refuse_no_text(head, uri)


def _refuse_no_text(head: bytes, uri: str) -> None:
    for each in _OTHERS:
        if each.first_bytes.match(head):
            raise SpecError(f"input.path: {uri} is {each.kind}, and no text in UTF-8; {each.way_out}")
