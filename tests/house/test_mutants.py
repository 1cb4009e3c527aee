"""Facts about the planted mistakes: they fit the code as it is, and their trials tell who noticed."""

from pathlib import Path

import pytest

from tests.support.running import ROOT
from tools.mutants.planted import MisplacedError, Mistake, planted_mistakes
from tools.mutants.trial import Copy, Trial, wait_for_any

PLANTED = planted_mistakes()


@pytest.mark.parametrize("mistake", PLANTED, ids=[mistake.name for mistake in PLANTED])
def test_a_planted_mistake_fits_the_code_and_names_its_tests(mistake: Mistake) -> None:
    """Whoever changes a line that a mistake replaces changes the mistake too."""
    source = (ROOT / mistake.file).read_text(encoding="utf-8")

    planted = mistake.planted(source)
    if mistake.file.endswith(".py"):
        compile(planted, mistake.file, "exec")

    assert mistake.tests
    assert all((ROOT / test.partition("::")[0]).exists() for test in mistake.tests)


def test_a_mistake_that_fits_nowhere_or_twice_is_an_error() -> None:
    """It would prove nothing about the tests."""
    mistake = Mistake(name="off by one", file="a.py", old="i + 1", new="i", tests=("tests/a.py",))

    assert mistake.planted("return i + 1") == "return i"
    for source in ("return i", "return i + 1 or i + 1"):
        with pytest.raises(MisplacedError, match="off by one"):
            mistake.planted(source)


def test_a_trial_names_the_test_that_noticed_and_restores_the_file(tmp_path: Path) -> None:
    """A mistake that its tests do not notice lives."""
    copy, file = Copy(tmp_path), "schemas/spec/secret_forms.py"
    test = "tests/spec/test_secret_forms.py"
    wrong = Mistake(name="", file=file, old="is not None", new="is None", tests=(test,))
    harmless = Mistake(name="", file=file, old="# AWS", new="# Amazon", tests=(test,))

    verdicts = [wait_for_any([Trial(copy, mistake.tests, mistake)])[1] for mistake in (wrong, harmless)]

    assert verdicts[0].noticed_by.startswith(f"{test}::")
    assert verdicts[1].noticed_by == ""
    assert (tmp_path / file).read_bytes() == (ROOT / file).read_bytes()
