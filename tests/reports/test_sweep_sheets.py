"""Facts about the contact sheet of a sweep."""

import io
import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.trial.trial_run import Choice, run_trial
from tests.support.checkpoints import paper_checkpoint
from tests.support.in_process import Record, job_spec, write_rows


def sheet(folder: Path, rows: list[Record], engine: str) -> dict[str, Any]:
    """What the page of a job of these rows shows."""
    spec = job_spec(
        write_rows(folder / "rows.parquet", rows),
        folder / "out",
        models={"sd": {"checkpoint": str(paper_checkpoint(folder / "sd"))}},
        batching={"shard_rows": 3},
        errors={"max_rate": 1},
    )
    run_trial(spec, Choice(limit=300), Console(file=io.StringIO()), engine=f"tests.support.engines:{engine}")
    page = (folder / "out.trials" / "0001" / "contact-sheet.html").read_text()
    found = re.search(r'<script id="sheet" type="application/json">(.*?)</script>', page)
    assert found
    shown: dict[str, Any] = json.loads(found[1])
    return shown


def test_every_image_of_a_small_sweep_is_on_the_page(tmp_path: Path) -> None:
    """However many parts it has; of other jobs the page has a sample."""
    rows: list[Record] = [{"row_id": f"r{n}", "prompt": "x", "sweep_seed": n % 7} for n in range(300)]

    frames = sheet(tmp_path, rows, "quick")["frames"]

    assert len(frames) == 300
    assert {(frame["row_id"], frame["keep"]["sweep_seed"]) for frame in frames} == {
        (f"r{n}", str(n % 7)) for n in range(300)
    }


def test_without_a_sweep_a_page_has_a_sample(tmp_path: Path) -> None:
    """It stays small."""
    rows: list[Record] = [{"row_id": f"r{n}", "prompt": "x"} for n in range(300)]

    assert len(sheet(tmp_path, rows, "quick")["frames"]) < 250
