"""The lists of words that prompts name, and the choice of one for a row."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from jobs.sweeps.prompt_templates import Choice, Template, Words, parsed
from jobs.sweeps.sweep_file import SweepFile
from schemas.errors import SpecError
from schemas.wording.nearest import did_you_mean
from schemas.wording.printable import shortened

MAX_FILE_BYTES = 64 << 20
MAX_CHOICES = 1_000
"""The most choices of one prompt. Lists that name lists can have any number of them."""
MAX_DEPTH = 64
"""How deeply choices and lists together may be nested."""


class WordLists:
    """The lists of a sweep, each read when a prompt first names it."""

    def __init__(self, sweep: SweepFile) -> None:
        words = sweep.spec.words
        self._inline = words if isinstance(words, dict) else {}
        self._folder = sweep.path.parent / (words if isinstance(words, str) else ".")
        self._sweep = sweep
        self._lists: dict[str, tuple[Template, ...]] = {}
        self.named: set[str] = set()
        """The names that the templates which were checked, and the words of their lists, have."""

    def texts(self, name: str, source: str) -> list[str]:
        """The words of a list, as they are written. SpecError where there is none of this name.

        `source`: what names the list, as a message begins.
        """
        return [text for text, _ in self._read(name, source)]

    def check(
        self, template: Template, source: str, swept: Collection[str], within: tuple[str, ...] = ()
    ) -> None:
        """Raise SpecError for a list that cannot be read, or that needs itself.

        `source`: where the template is, as a message begins; `swept`: the lists from which the sweep takes
        each word; `within`: the lists in which the template is.
        """
        for name in dict.fromkeys(template.word_names()):
            self.named.add(name)
            if name in within:
                trail = " -> ".join(f"__{each}__" for each in (*within, name))
                raise SpecError(f"{source}: a list of words needs itself: {trail}")
            if name not in swept and name not in self._lists:
                words = [self._parsed(*word) for word in self._read(name, source)]
                for word, source_of_word in words:
                    self.check(word, source_of_word, swept, (*within, name))
                self._lists[name] = tuple(word for word, _ in words)

    def rendered(self, template: Template, key: str, swept: Mapping[str, str]) -> str:
        """The template with a choice made at each place, which `check` has seen.

        The same `key` always makes the same choices. `swept`: the words of lists whose choice is made.
        ValueError where there are too many choices.
        """
        return _Rendering(self._lists, swept, key).text(template)

    def _read(self, name: str, source: str) -> Iterator[tuple[str, str]]:
        """Each word of a list, and where it is written."""
        if name in self._inline:
            at = ("words", name)
            if not self._inline[name]:
                raise self._sweep.error(at, "the list is empty")
            yield from ((word, self._sweep.source(*at, i)) for i, word in enumerate(self._inline[name]))
            return
        path = self._folder / f"{name}.txt"
        if not path.exists():
            files = [file.stem for file in path.parent.glob("*.txt")]
            hint = did_you_mean(name, [*self._inline, *files])
            raise SpecError(
                f"{source}: {path} does not exist{hint}; write it, with a word in each line, or write "
                rf"\__{name}__ for the text itself"
            )
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                yield line.strip(), f"{path}:{number}"

    def _parsed(self, text: str, source: str) -> tuple[Template, str]:
        try:
            return parsed(text), source
        except ValueError as error:
            raise SpecError(f"{source}: {shortened(text)!r}: {error}") from error


def _lines(path: Path) -> list[str]:
    """The lines of a list, of which one is not blank."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise SpecError(f"{path}: is longer than the {MAX_FILE_BYTES:,} bytes that a list of words may have")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text ({error})") from error
    if not any(map(str.strip, lines)):
        raise SpecError(f"{path}: has no words; write one in each line")
    return lines


class _Rendering:
    """The choices of one prompt as they are made."""

    def __init__(self, lists: Mapping[str, tuple[Template, ...]], swept: Mapping[str, str], key: str) -> None:
        self._lists = lists
        self._swept = swept
        self._key = key
        self._num_choices = 0

    def text(self, template: Template, depth: int = 0) -> str:
        if depth > MAX_DEPTH:
            raise ValueError("the lists of words that it takes need each other without end")
        return "".join(self._part(part, depth) for part in template.parts)

    def _part(self, part: str | Words | Choice, depth: int) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Words) and part.name in self._swept:
            return self.text(parsed(self._swept[part.name]), depth + 1)
        options = self._lists[part.name] if isinstance(part, Words) else part.options
        return self.text(self._chosen(options), depth + 1)

    def _chosen(self, options: tuple[Template, ...]) -> Template:
        """One of the options: for each row's own key, and each place in its prompt, another one."""
        self._num_choices += 1
        if self._num_choices > MAX_CHOICES:
            raise ValueError(f"more than {MAX_CHOICES:,} choices are made for it; shorten its lists of words")
        digest = hashlib.sha256(f"{self._num_choices}\0{self._key}".encode()).digest()
        return options[int.from_bytes(digest[:8], "big") % len(options)]
