"""Texts of a spec that a terminal shows as they are."""

from typing import Annotated

from pydantic import AfterValidator, Field

from schemas.wording.printable import command_in


def shown_as_it_is(text: str) -> str:
    """The text itself; ValueError if it contains a character that a terminal would obey."""
    sign = command_in(text)
    if sign:
        raise ValueError(
            f"contains U+{ord(sign):04X}, which a terminal obeys and does not show; leave it out"
        )
    return text


Plain = Annotated[str, AfterValidator(shown_as_it_is)]
Name = Annotated[str, Field(min_length=1), AfterValidator(shown_as_it_is)]
