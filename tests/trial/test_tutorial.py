"""The tutorial is followed word by word: each of its blocks is run as it is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.running import ROOT, clean_env

INTERPRETERS = {"sh": ("bash", "-euo", "pipefail", "-c"), "python": (sys.executable, "-c")}
"""By the language of a block. Blocks of `bash` install darkroom, and are not run."""


def blocks() -> list[tuple[str, str]]:
    """(language, text) of each block that is run, in order."""
    page = (ROOT / "docs" / "tutorial.md").read_text()
    return [block for block in re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL) if block[0] in INTERPRETERS]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder in which the tutorial was followed, and what each block printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    texts = []
    for language, text in blocks():
        ended = subprocess.run(
            [*INTERPRETERS[language], text],
            cwd=folder,
            env=clean_env(sys.executable),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, f"{text}\n{ended.stdout}\n{ended.stderr}"
        texts.append(ended.stdout)
    return folder, texts


def test_the_sweep_has_a_row_for_each_combination(printed: tuple[Path, list[str]]) -> None:
    """Three prompts, four scales and five seeds, each with a picture and a name of its own."""
    folder, _ = printed
    rows = pq.read_table(folder / "out" / "sweep" / "data").to_pylist()

    assert len({row["row_id"] for row in rows}) == len(rows) == 60
    assert {row["status"] for row in rows} == {"ok"}


def test_the_plan_tells_the_time(printed: tuple[Path, list[str]]) -> None:
    """From the trials that came before it."""
    _, texts = printed
    plan = next(text for (_, command), text in zip(blocks(), texts, strict=True) if "--gpu-hour" in command)

    assert "time: " in plan
    assert "measured by the trial" in plan
    assert "cost: " in plan


def test_the_last_block_reads_every_row(printed: tuple[Path, list[str]]) -> None:
    """All five prompts are there, with pictures of 64 by 64 pixels."""
    folder, texts = printed
    prompts = (folder / "prompts.txt").read_text().splitlines()

    assert sorted(texts[-1].splitlines()) == sorted(f"ok 64 64 {prompt}" for prompt in prompts)
