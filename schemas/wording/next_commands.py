"""Commands of darkroom, as people type them."""

import shlex
from collections.abc import Sequence


def command(*arguments: str) -> str:
    """A command of darkroom as one types it."""
    return shlex.join(["darkroom", *arguments])


def next_lines(commands: Sequence[tuple[str, str]]) -> list[str]:
    """The lines that name the commands that come next, each with its purpose as a comment of the shell."""
    width = max(len(typed) for typed, _ in commands)
    return ["next:", *(f"  {typed:{width}}  # {purpose}" for typed, purpose in commands)]
