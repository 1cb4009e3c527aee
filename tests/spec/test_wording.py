"""Facts about amounts, hints and foreign texts in messages."""

import pytest

from schemas.wording.amounts import counted, duration, size_text
from schemas.wording.nearest import did_you_mean
from schemas.wording.printable import (
    MAX_LISTED,
    MAX_QUOTED,
    MAX_SHOWN,
    command_in,
    escaped,
    in_one_line,
    listed,
    shortened,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (190, "3 min 10 s"),
        (3599, "59 min 59 s"),
        (5 * 3600 + 20 * 60 + 7, "5 h 20 min"),
        (1_000 * 3600, "1,000 h 0 min"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    """Rounded to whole seconds first."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (3_400_000, "3.4 MB"),
        (10**9, "1.0 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_a_size_is_told_in_the_largest_unit_that_fits(size_bytes: int, text: str) -> None:
    """By thousands."""
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 rows"), (1, "1 row"), (1200, "1,200 rows"), (0.5, "0.5 rows"), (1.0, "1 row")]
)
def test_a_noun_agrees_with_its_number(number: float, text: str) -> None:
    """Numbers have separators."""
    assert counted(number, "row") == text


@pytest.mark.parametrize(
    "sign", ["\r", "\x1b", "\x07", "\b", "\t", "\x9b", "\u202e", "\u2028", "\ufeff", "\ud800"]
)
def test_no_text_commands_a_terminal(sign: str) -> None:
    """What would clear it, type into it or turn its lines round is written out."""
    shown = escaped(f"a{sign}\nb\u0416 c")

    assert shown.startswith("a\\")
    assert shown.endswith("\nb\u0416 c")
    assert sign not in shown
    assert command_in("a b\u0416") is None


def test_long_texts_and_lists_are_shown_by_their_beginning() -> None:
    """What is as long as allowed is shown whole."""
    names = [f"n{i}" for i in range(MAX_LISTED + 1)]

    assert shortened("x" * MAX_SHOWN) == "x" * MAX_SHOWN
    assert shortened("x" * (MAX_SHOWN + 1)) == "x" * (MAX_SHOWN - 3) + "..."
    assert listed(names[:-1]) == ", ".join(names[:-1])
    assert listed(names) == ", ".join(names[:-1]) + " and 1 more"


def test_an_error_of_another_library_is_quoted_on_one_line() -> None:
    """torch's list of parameters that do not fit is pages long. An error without a text is its type."""
    long = RuntimeError("size mismatch for conv_in:\n\tcopying ..." + "x" * 9999)

    assert in_one_line(long).startswith("size mismatch for conv_in: copying ...xxx")
    assert len(in_one_line(long)) == MAX_QUOTED
    assert in_one_line(KeyError()) == "KeyError"


def test_a_hint_names_the_nearest_name_but_not_for_any_text() -> None:
    """Capitals do not count. A text of thousands of characters is no typing error, and is not compared."""
    long = "prompt" * 20

    assert did_you_mean("Promt", ["seed", "prompt"]) == " (did you mean `prompt`?)"
    assert did_you_mean("xyz", ["seed", "prompt"]) == ""
    assert did_you_mean(long, [long]) == ""
