"""Texts of strangers on a terminal."""


def printable(text: str) -> str:
    """The text with its control characters written out: some clear a terminal, or type into it, or turn the
    line round. Line ends stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else _written(sign) for sign in text)


def _written(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
