"""Texts of strangers in messages and on a terminal."""

import re
from collections.abc import Sequence

MAX_SHOWN = 100
"""Characters of one text in a message."""
MAX_LISTED = 20
"""Names in a message."""

_COMMAND = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, ends of lines, and what turns the direction of writing."""


def printable(text: str) -> str:
    """The text with its control characters written out: some clear a terminal, or type into it, or turn the
    line round. Line ends stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else _written(sign) for sign in text)


def command_in(text: str) -> str | None:
    """The first character that a terminal would obey and not show, if there is one."""
    found = _COMMAND.search(text)
    return found and found[0]


def shortened(text: str) -> str:
    """The text, or the beginning of a long one."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def listed(names: Sequence[str]) -> str:
    """The names, or the first of many and the number of the others."""
    more = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
    return ", ".join(shortened(name) for name in names[:MAX_LISTED]) + more


def _written(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
