"""Whether a worker that loads a checkpoint makes progress, as the driver sees it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.engine.pipelines import signs_of_work
from actors.engine.pipelines.signs_of_work import SignsOfWork

POLL_S = 2.0
MINUTES_20 = 600
"""Polls."""


def counts(monkeypatch: pytest.MonkeyPatch, num: int, **rates: float) -> list[int]:
    """The counts of this many polls. Rates: a share of a core, and bytes a second of process and folder."""

    def samples() -> Iterator[signs_of_work._Sample]:
        for poll in range(num + 1):
            seconds = poll * POLL_S
            cpu, moved, arrived = (rates.get(name, 0.0) for name in ("cpu", "moved", "arrived"))
            yield signs_of_work._Sample(seconds, cpu * seconds, int(moved * seconds), int(arrived * seconds))

    sample = samples()
    monkeypatch.setattr(signs_of_work, "_sample", lambda folder: next(sample))
    signs = SignsOfWork()
    with signs.watched():
        return [signs.count for _ in range(num)]


@pytest.mark.parametrize("rates", [{"arrived": 1e7}, {"moved": 1e7}, {"cpu": 1.0}, {"arrived": 2e4}])
def test_a_slow_download_is_progress_for_as_long_as_it_takes(
    monkeypatch: pytest.MonkeyPatch, rates: dict[str, float]
) -> None:
    """Twelve gigabytes in twenty minutes, whether this process or another one fetches or reads them."""
    assert counts(monkeypatch, MINUTES_20, **rates) == [*range(1, MINUTES_20 + 1)]


def test_an_idle_process_makes_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own threads use a hundredth of a core and read some bytes."""
    assert counts(monkeypatch, MINUTES_20, cpu=0.01, moved=200) == [0] * MINUTES_20


def test_what_arrives_in_the_repositorys_folder_is_seen(tmp_path: Path) -> None:
    """Unfinished files too; without a folder, there is nothing to see."""
    (tmp_path / "blobs").mkdir()
    signs = SignsOfWork()
    with signs.watched(tmp_path):
        time.sleep(0.2)
        assert signs.count == 0
        (tmp_path / "blobs" / "abc.incomplete").write_bytes(bytes(10_000_000))
        assert signs.count == 1
    assert signs.count == 1
    with signs.watched(tmp_path / "none"):
        assert signs.count <= 2
