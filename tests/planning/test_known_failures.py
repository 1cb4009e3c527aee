"""Rows that fail by their values alone are not tried again, unless somebody asks for it."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.fleet.budget import judge
from schemas.errors import BudgetError, RowError
from tests.support.engines import NoiseEngine
from tests.support.in_process import Record, drawn_image, job_spec, write_rows
from tests.support.running import output_rows, parts
from tests.support.simulation.in_process_driver import InProcessDriver

ROWS: list[Record] = [
    {"row_id": "a1", "task": "one"},
    {"row_id": "b1", "task": "other"},
    {"row_id": "a2", "task": "one", "prompt": None},
    {"row_id": "b2", "task": "other", "height": 61},
    {"row_id": "lost", "task": "paint"},
    {"row_id": "b3", "task": "other"},
    {"row_id": "a1", "task": "one"},
    {"row_id": "web", "task": "image", "image": {"bytes": None, "path": "https://a.b/c.png"}},
    {"row_id": "b4", "task": "other", "height": 61},
    {"row_id": "tiny", "task": "image", "image": {"bytes": None, "path": "tiny.png"}},
    {"row_id": "bad", "task": "image", "prompt": None, "image": {"bytes": None, "path": "tiny.png"}},
    {"row_id": "nan", "task": "other"},
]
"""Shards of two rows: (a1, a2), (a1 again, web), (tiny, bad) of one model, (b1, b2), (b3, b4), (nan) of the
other, and (lost) of none."""
HOPELESS = "6 rows (2 invalid_size, 1 missing_prompt, 1 duplicate_row_id, 1 image_url, 1 unknown_task)"


class Flawed(NoiseEngine):
    """The row `nan` fails."""

    def generate(self, rows: Sequence[Any], decoders: Any) -> Any:
        for generated in super().generate(rows, decoders):
            is_bad = generated.sample.opened.row.row_id == "nan"
            problem = RowError("nonfinite_image", "it is not finite")
            yield replace(generated, pixels=None, problem=problem) if is_bad else generated


def draw(path: Path, size: int) -> None:
    Image.open(io.BytesIO(drawn_image((size, size))["bytes"])).save(path)


@pytest.fixture
def driver(tmp_path: Path) -> InProcessDriver:
    """A driver whose job has run once; it had an image that was too small, and a bad machine."""
    draw(tmp_path / "tiny.png", 4)
    rows = [{"prompt": "a fox", "height": 64, "image": None, **row} for row in ROWS]
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", rows),
        tmp_path / "out",
        models={"sd": {"checkpoint": "demo:sd"}, "xl": {"checkpoint": "demo:sd"}},
        routes={
            "one": {"task": "text2img", "model": "sd"},
            "image": {"task": "img2img", "model": "sd"},
            "other": {"task": "text2img", "model": "xl"},
        },
        default_route="one",
        batching={"shard_rows": 2},
        errors={"max_rate": 1.0},
    )
    driver = InProcessDriver(spec)
    driver.engine = lambda: Flawed(0)
    driver.run()
    driver.given.clear()
    driver.engine = lambda: NoiseEngine(0)
    return driver


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def codes(output: Path) -> dict[str, str]:
    """The error_code of each failed row; the second of two rows with one id counts."""
    return {row["row_id"]: row["error_code"] for row in output_rows(output) if row["error_code"]}


def inodes(output: Path) -> dict[str, int]:
    return {part.name: part.stat().st_ino for part in parts(output)}


def test_only_parts_with_a_row_that_may_succeed_are_replaced(
    driver: InProcessDriver, output: Path, tmp_path: Path
) -> None:
    """A size of a row's own stays wrong, and that of an image at a place need not."""
    before, files = codes(output), inodes(output)
    draw(tmp_path / "tiny.png", 64)

    driver.retry()

    replaced = [name for name, inode in inodes(output).items() if files[name] != inode]
    assert (before.pop("tiny"), before.pop("nan")) == ("invalid_size", "nonfinite_image")
    assert codes(output) == before
    assert len(replaced) == len(driver.given) == 2
    assert f"not retried: {HOPELESS}. Their own values are at fault" in driver.printed


def test_without_a_row_that_may_succeed_no_worker_is_started(driver: InProcessDriver, output: Path) -> None:
    """Nothing is written either."""
    lost = [parts(output)[2], parts(output)[5]]
    for part in lost:
        part.rename(part.with_suffix(".away"))
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}

    result = driver.retry()

    assert (driver.given, result.run.rows) == ([], 0)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert f"not retried: {HOPELESS}" in driver.printed
    with pytest.raises(BudgetError, match=r"^missing parts: 2\. `darkroom run` generates them$"):
        judge(driver.spec.errors, result)


def test_who_names_the_code_gets_them_retried(driver: InProcessDriver, output: Path) -> None:
    """Another version of darkroom may find another reason."""
    before = codes(output)

    result = driver.retry("missing_prompt")

    assert sorted(shard.index for shard in driver.given) == [0, 2]
    assert result.failures.keys() >= {"missing_prompt"}
    assert codes(output) == before
    assert "not retried" not in driver.printed
