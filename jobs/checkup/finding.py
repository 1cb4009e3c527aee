"""What a check finds."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"
    """A run may be slow, or may fail later."""
    PROBLEM = "problem"
    """A run would fail, or would leave this machine's GPU alone."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check has found."""

    level: Level
    text: str
    """What it is and, unless all is well, the way out."""


def ok(text: str) -> Finding:
    """A finding that all is well."""
    return Finding(Level.OK, text)


def warning(text: str) -> Finding:
    """A finding that a run may be slow, or may fail later."""
    return Finding(Level.WARNING, text)


def problem(text: str) -> Finding:
    """A finding that a run would fail."""
    return Finding(Level.PROBLEM, text)
