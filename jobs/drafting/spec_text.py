"""The YAML of a drafted spec, with a comment at each choice."""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from jobs.drafting.column_choice import Entry
from schemas.systems.parameters import ParameterValue
from schemas.wording.printable import escaped

LINE = 110
"""Characters of a line of comments."""
_WORD = re.compile(r"(\.?/)?[A-Za-z_][A-Za-z0-9_./-]*")
"""A text that needs no quotes, if it is none of YAML's own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedRoute:
    """A route of a drafted spec. Its name is its task."""

    task: str
    values: Mapping[str, ParameterValue]
    reason: str = ""
    """Why this task was chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a drafted spec says."""

    title: str
    """What the spec does, in a sentence."""
    name: str
    path: str
    """input.path."""
    entries: Mapping[str, Entry]
    """input.columns."""
    keep: Sequence[str]
    input_notes: Sequence[str]
    """What the user should know about the input, a sentence each."""
    model: str
    """The model's name."""
    checkpoint: str
    model_notes: Sequence[str]
    routes: Sequence[DraftedRoute]
    output: str

    def text(self) -> str:
        """The whole YAML file."""
        lines = [
            *_comment(self.title, 0),
            "version: 1",
            f"name: {as_yaml(self.name)}",
            "input:",
            f"  path: {as_yaml(self.path)}",
            *(line for note in self.input_notes for line in _comment(note, 2)),
            *self._columns(),
            *(
                [f"  keep: {as_yaml([*self.keep])} # copied to the output, beside the images"]
                if self.keep
                else []
            ),
            "models:",
            f"  {as_yaml(self.model)}:",
            *(line for note in self.model_notes for line in _comment(note, 4)),
            f"    checkpoint: {as_yaml(self.checkpoint)}",
            *self._routes(),
            "output:",
            f"  path: {as_yaml(self.output)} # belongs to this job alone; run the job again to resume it",
            "seed: 0 # a row without a seed gets one from this number and its row_id",
            "errors:",
            "  max_rate: 0.01 # a job whose plan already finds more bad rows than this share does not start",
        ]
        return "".join(f"{line}\n" for line in lines)

    def _columns(self) -> list[str]:
        if not self.entries:
            return []
        lines = ["  columns: # field: column; null: the field is not read"]
        for field, entry in self.entries.items():
            lines += _comment(sentence(entry.reason), 4)
            lines.append(f"    {field}: {as_yaml(entry.column)}")
        return lines

    def _routes(self) -> list[str]:
        lines = ["routes:"]
        if len(self.routes) > 1:
            lines += _comment("The `task` of a row names one of these.", 2)
        lines += _comment("A row's own columns override the values of its route.", 2)
        for route in self.routes:
            lines.append(f"  {route.task}:" + (f" # {route.reason}" if route.reason else ""))
            lines.append(f"    model: {as_yaml(self.model)}")
            lines += [f"    {name}: {as_yaml(value)}{_why(name)}" for name, value in route.values.items()]
        if len(self.routes) > 1:
            lines.append(f"default_route: {self.routes[0].task} # for rows without a task")
        return lines


_WHY = {
    "num_inference_steps": "fewer are faster, and more may be finer",
    "guidance_scale": "the higher, the closer to the prompt; too high spoils the colours",
    "strength": "how much of the row's image is changed, from 0 to 1",
    "recipe": "the scheduler, steps and guidance that this few-step model was made for",
}
"""What a value of a route does."""


def _why(parameter: str) -> str:
    return f" # {_WHY[parameter]}" if parameter in _WHY else ""


def as_yaml(value: object) -> str:
    """The value as YAML, in one line: a text, a number, null or a list of these."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _WORD.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    # In quotes, nothing is read as a number, as a date or as YAML's own signs.
    quoted = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf"))
    return str(quoted).removesuffix("\n")


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def _comment(text: str, indent: int) -> list[str]:
    """The lines of a comment. One that begins with a space has a command, which is not broken."""
    start = f"{' ' * indent}# "
    lines = []
    for paragraph in escaped(text).split("\n"):
        broken = [paragraph] if paragraph.startswith(" ") else textwrap.wrap(paragraph, LINE - len(start))
        lines += [f"{start}{line}" for line in broken]
    return lines
