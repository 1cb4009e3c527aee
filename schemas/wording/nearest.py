"""The hint in an error message: what was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

from schemas.wording.printable import MAX_SHOWN


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """` (did you mean X?)` where some valid name is close, else an empty string."""
    if len(wrong) > MAX_SHOWN:
        # Nobody mistyped that, and to compare two long texts takes minutes.
        return ""
    by_lower = {name.lower(): name for name in valid}
    found = get_close_matches(wrong.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean `{by_lower[found[0]]}`?)" if found else ""
