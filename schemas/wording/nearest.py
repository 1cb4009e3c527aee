"""The hint in an error message that tells which name was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

from schemas.wording.printable import MAX_SHOWN


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """` (did you mean X?)` with the valid name that is nearest to `wrong`; empty if none is near."""
    if len(wrong) > MAX_SHOWN:
        # Such a long text is not a typing error, and comparing two long texts takes minutes.
        return ""
    by_lower = {name.lower(): name for name in valid}
    matches = get_close_matches(wrong.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean `{by_lower[matches[0]]}`?)" if matches else ""
