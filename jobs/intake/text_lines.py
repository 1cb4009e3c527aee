"""The lines of a text file, in blocks of bounded size."""

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from jobs.intake.file_signatures import HEAD_BYTES, refuse_other_content, refuse_packed_twice
from schemas.errors import SpecError
from schemas.wording.amounts import size_text

BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 16 << 20
"""The longest line that is read."""
_UTF8_MARK = b"\xef\xbb\xbf"
"""What some editors, and Excel, write before UTF-8."""


def line_blocks(source: io.RawIOBase, compression: str | None, uri: str) -> Iterator[list[str]]:
    """The lines of a UTF-8 file without their line feeds, in lists of neighbours.

    `compression`: what the file is compressed with, as pyarrow calls it. SpecError, with the number of the
    line, for what is not text in UTF-8, and for a line that is too long.
    """
    num_lines, rest = 0, b""
    for block in _blocks(source, compression, uri):
        # A block is shorter than the limit, so only the line that an earlier one began can be too long.
        if len(rest) + len(block.partition(b"\n")[0]) > MAX_LINE_BYTES:
            raise SpecError(
                f"input.path: {uri} line {num_lines + 1:,} has more than {size_text(MAX_LINE_BYTES)}, which "
                "is the most that is read"
            )
        lines, feed, rest = (rest + block).rpartition(b"\n")
        if feed:
            yield (decoded := _decoded(lines, num_lines, uri))
            num_lines += len(decoded)
    if rest:
        yield _decoded(rest, num_lines, uri)


def _blocks(source: io.RawIOBase, compression: str | None, uri: str) -> Iterator[bytes]:
    """The content of the file as it is unpacked."""
    packed = io.BufferedReader(source, BLOCK_BYTES)
    refuse_other_content(packed.peek(HEAD_BYTES)[:HEAD_BYTES], compression, uri)
    raw: Any = pa.CompressedInputStream(packed, compression) if compression else packed
    is_first = True
    try:
        while block := raw.read(BLOCK_BYTES):
            if is_first:
                _check_first(block, compression, uri)
            is_first = False
            yield block
    except (OSError, pa.ArrowException) as error:
        if not compression:
            raise
        raise SpecError(
            f"input.path: {uri} cannot be unpacked ({error}); it is damaged, or not what its name says"
        ) from error


def _check_first(block: bytes, compression: str | None, uri: str) -> None:
    """Raise SpecError where the first block of the unpacked content shows that it has no lines of text."""
    if compression:
        refuse_packed_twice(block[:HEAD_BYTES], uri)
    if b"\n" not in block and b"\r" in block.rstrip(b"\r"):
        raise SpecError(
            f"input.path: {uri} ends its lines with carriage returns alone, as old Macs did; write line "
            "feeds, for example with tr '\\r' '\\n'"
        )


def _decoded(lines: bytes, num_before: int, uri: str) -> list[str]:
    """These lines, before which the file has `num_before` others."""
    if not num_before:
        lines = lines.removeprefix(_UTF8_MARK)
    try:
        if b"\0" not in lines:
            return lines.decode().split("\n")
        good, reason = lines.partition(b"\0")[0], "has a zero byte"
    except UnicodeDecodeError as error:
        good, reason = lines[: error.start], f"is not UTF-8 ({error.reason})"
    encoding = "UTF-16" if b"\0" in lines else "latin1"
    number = num_before + good.count(b"\n") + 1
    raise SpecError(
        f"input.path: {uri} line {number:,} {reason}; write the file as UTF-8, for example with "
        f"iconv -f {encoding} -t UTF-8"
    )
