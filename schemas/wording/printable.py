"""Texts of unknown origin, made safe and short for messages and terminals."""

import re
from collections.abc import Sequence

MAX_SHOWN = 100
"""The most characters of one text that a message shows."""
MAX_QUOTED = 400
"""The most characters of another library's error that a message quotes."""
MAX_LISTED = 20
"""The most names that a message lists."""

_COMMAND = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, line ends, and characters that change the direction of writing."""


def escaped(text: str) -> str:
    """The text with escape sequences for characters that are not printable, except line ends.

    Some of these characters clear a terminal, type into it or reverse a line.
    """
    return "".join(sign if sign.isprintable() or sign == "\n" else _escape(sign) for sign in text)


def command_in(text: str) -> str | None:
    """The first character of the text that a terminal would obey instead of showing it, or None."""
    match = _COMMAND.search(text)
    return match and match[0]


def shortened(text: str) -> str:
    """The text, cut to MAX_SHOWN characters if it is longer."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def in_one_line(error: BaseException) -> str:
    """The message of another library's error on one line, of at most MAX_QUOTED characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 3]}..."


def listed(names: Sequence[str]) -> str:
    """The names, separated by commas: at most MAX_LISTED of them, and the number of the others."""
    more = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
    return ", ".join(shortened(name) for name in names[:MAX_LISTED]) + more


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
