"""Prompts with choices: `a {red|blue} circle` and `a __colours__ circle`, where a file has the colours."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from schemas.wording.printable import shortened

MAX_DEPTH = 16
"""How deeply choices may be nested."""
WORD = re.compile(r"__([A-Za-z0-9][A-Za-z0-9-]*(?:[_/][A-Za-z0-9][A-Za-z0-9-]*)*)__")
"""The name of a list of words, as a prompt has it. A slash leads into a folder."""
_TOKEN = re.compile(rf"\\[{{}}|_]|[{{}}|]|{WORD.pattern}")
_FOREIGN = re.compile(r"\s*(?:[0-9.]+::|[0-9-]+\$\$)")
"""How Dynamic Prompts begins a choice with a weight, and one of several options at once."""


@dataclass(frozen=True, slots=True)
class Words:
    """A place for one of the words of a list."""

    name: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A place for one of several texts."""

    options: tuple["Template", ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A text with choices in it."""

    parts: tuple["str | Words | Choice", ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is a text without choices."""
        return all(isinstance(part, str) for part in self.parts)

    @property
    def plain_text(self) -> str:
        """The text of a template without choices."""
        return "".join(part for part in self.parts if isinstance(part, str))

    def word_names(self) -> Iterator[str]:
        """The names of the lists whose words it takes."""
        for part in self.parts:
            if isinstance(part, Words):
                yield part.name
            elif isinstance(part, Choice):
                for option in part.options:
                    yield from option.word_names()


@lru_cache(maxsize=4096)
def parsed(text: str) -> Template:
    """The template that a text is; ValueError says what is wrong with it."""
    if not _TOKEN.search(text):
        return Template((text,))
    parser = _Parser(text)
    template = parser.template(0)
    if parser.position < len(text):
        raise ValueError(
            rf"the `}}` at character {parser.position + 1} closes nothing; write \}} for the sign"
        )
    return template


class _Parser:
    """What is left of a text."""

    def __init__(self, text: str) -> None:
        self.position = 0
        self._text = text

    def template(self, depth: int) -> Template:
        """The template up to the end of the option, or of the text where `depth` is 0."""
        parts: list[str | Words | Choice] = []
        while token := _TOKEN.search(self._text, self.position):
            parts.append(self._text[self.position : token.start()])
            self.position = token.start()
            sign = token[0]
            if sign == "}" or (sign == "|" and depth):
                break
            self.position = token.end()
            if sign == "{":
                parts.append(self._choice(token.start(), depth + 1))
            elif token[1]:
                parts.append(Words(token[1]))
            else:
                parts.append(sign.removeprefix("\\"))
        else:
            parts.append(self._text[self.position :])
            self.position = len(self._text)
        return Template(tuple(part for part in parts if part))

    def _choice(self, start: int, depth: int) -> Choice:
        """The choice whose brace is at `start`."""
        if depth > MAX_DEPTH:
            raise ValueError(f"its choices are nested more than {MAX_DEPTH} deep")
        if foreign := _FOREIGN.match(self._text, self.position):
            raise ValueError(
                f"`{{{foreign[0]}` at character {start + 1} is not supported; to make an option likelier, "
                "write it several times"
            )
        options = [self.template(depth)]
        while self._text[self.position : self.position + 1] == "|":
            self.position += 1
            options.append(self.template(depth))
        if self.position == len(self._text):
            raise ValueError(rf"the `{{` at character {start + 1} is never closed; write \{{ for the sign")
        self.position += 1
        if not any(option.parts for option in options):
            chosen = shortened(self._text[start : self.position])
            raise ValueError(rf"`{chosen}` at character {start + 1} has no options; write \{{ for the sign")
        return Choice(tuple(options))
