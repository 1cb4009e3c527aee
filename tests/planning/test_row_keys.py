"""Facts about the keys of rows' ids: repeated ones are found in any number, in memory or on disk."""

import io
import os
import resource
import tempfile
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jobs.planning import row_keys
from jobs.planning.plan import make_plan
from jobs.planning.plan_text import check_rows
from jobs.planning.row_keys import Keys, RowKeys
from jobs.survey.survey import make_survey
from tests.support.in_process import Record, job_spec, write_rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so low that a few thousand keys are very many."""
    monkeypatch.setattr(row_keys, "MAX_IN_MEMORY", 100)
    monkeypatch.setattr(row_keys, "PARTITION_ROWS", 300)
    monkeypatch.setattr(row_keys, "BUFFERED_ROWS", 250)
    monkeypatch.setattr(row_keys, "CHUNK_ROWS", 120)


def temporary_files(folder: Path) -> list[str]:
    """The files of the folder that this process has open, with or without a name."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            continue  # the one with which the folder was listed
    return [link for link in links if link.startswith(f"{folder}/")]


def some_keys(num: int, num_different: int, spread: int) -> Keys:
    return np.random.default_rng(num).integers(0, num_different, num) * spread - num


@pytest.mark.parametrize("num", [1, 99, 100, 101, 250, 1_000, 5_000])
@pytest.mark.parametrize("num_different", [1, 40, 100_000])
@pytest.mark.parametrize("spread", [1, 2**44 + 1])
def test_repeated_keys_are_found_in_any_number(
    small: None, folder: Path, num: int, num_different: int, spread: int
) -> None:
    """Whether they count up or are spread, and whether few or all are equal."""
    keys = some_keys(num, num_different, spread)
    different, counts = np.unique(keys, return_counts=True)

    with RowKeys(num) as kept, ThreadPoolExecutor(4) as threads:
        list(threads.map(kept.add, np.array_split(keys, 17)))
        num_files = len(temporary_files(folder))
        found, num_repetitions = kept.repeated(num)

    assert np.sort(found).tolist() == different[counts > 1].tolist()
    assert num_repetitions == num - len(different)
    assert num_files == (0 if num <= 100 else 2 ** max(1, (-(-num // 300) - 1).bit_length()))


def test_no_more_keys_are_told_than_asked_for(small: None) -> None:
    """There may be as many as rows; their number is told all the same."""
    with RowKeys(2_000) as kept:
        kept.add(np.repeat(np.arange(500), 4))
        found, num_repetitions = kept.repeated(7)

    assert (len(found), num_repetitions) == (7, 1_500)


def test_keys_that_count_up_share_all_files(small: None, folder: Path) -> None:
    """Each file must fit in memory, also where ids are 0, 1, 2 ..."""
    with RowKeys(3_000) as kept:
        kept.add(np.arange(3_000))
        sizes = [os.fstat(file.fileno()).st_size // 8 for file in kept._files]

    assert len(sizes) == 16
    assert sum(sizes) == 3_000
    assert max(sizes) < 2 * 3_000 / 16


def test_files_are_left_by_nobody(small: None, folder: Path) -> None:
    """They have no names while they are open, and are closed where the block ends, by an error too."""

    def fail_while_open() -> None:
        with RowKeys(1_000) as kept:
            kept.add(np.arange(1_000))
            assert (len(temporary_files(folder)), os.listdir(folder)) == (4, [])
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_open()

    assert temporary_files(folder) == []


@contextmanager
def full_disk() -> Iterator[None]:
    """A disk that takes no file of more than a thousand bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_ends_the_comparison(small: None, folder: Path) -> None:
    """The reason is told, and what comes later costs nothing."""
    with RowKeys(10_000) as kept, full_disk():
        for start in range(0, 10_000, 100):
            kept.add(np.arange(start, start + 100) % 50)
        open_files = temporary_files(folder)
        found = kept.repeated(10)

    assert (len(found[0]), found[1]) == (0, 0)
    assert kept.problem.startswith(
        "this takes 80.0 kB in the folder for temporary files ([Errno 27] File too"
    )
    assert kept.problem.endswith("; name another folder with TMPDIR")
    assert open_files == []


def test_a_disk_that_is_too_small_is_not_filled(folder: Path) -> None:
    """That is known before the first key."""
    with RowKeys(10**15) as kept:
        kept.add(np.arange(100))

    assert "this takes 8000.0 TB in the folder" in kept.problem
    assert " free); name another folder with TMPDIR" in kept.problem


def test_memory_does_not_grow_with_the_keys(
    small: None, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Only as much is kept as is written or read together: here a tenth of all."""
    num = 2_000_000
    monkeypatch.setattr(row_keys, "PARTITION_ROWS", 20_000)
    monkeypatch.setattr(row_keys, "BUFFERED_ROWS", 20_000)
    monkeypatch.setattr(row_keys, "CHUNK_ROWS", 20_000)

    tracemalloc.start()
    with RowKeys(num) as kept:
        for start in range(0, num, 10_000):
            kept.add(np.arange(start, start + 10_000) % (num - 1))
        found, num_repetitions = kept.repeated(10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (found.tolist(), num_repetitions) == ([0], 1)
    assert peak < 8 * num / 8


ROWS: list[Record] = [{"row_id": f"r{i % 140}", "prompt": "x"} for i in range(150)]


def test_a_plan_is_the_same_whether_keys_are_on_disk_or_not(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several files."""
    (tmp_path / "rows").mkdir()
    for i in range(3):
        write_rows(tmp_path / "rows" / f"{i}.parquet", ROWS[50 * i : 50 * i + 50])
    surveyed = make_survey(job_spec(tmp_path / "rows", tmp_path / "out"))
    in_memory = make_plan(surveyed)

    monkeypatch.setattr(row_keys, "MAX_IN_MEMORY", 10)
    on_disk = make_plan(surveyed)

    assert on_disk[0] == in_memory[0]
    assert repr(on_disk[1]) == repr(in_memory[1])
    assert on_disk[1].num_bad == {"duplicate_row_id": 10}
    assert on_disk[1].ids_problem == ""


@pytest.mark.parametrize("ids", [True, False])
def test_a_plan_says_that_ids_were_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: bool
) -> None:
    """With the reason and the way out; and nothing where there are no ids."""
    rows = ROWS if ids else [{"prompt": "x"} for _ in ROWS]
    surveyed = make_survey(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out"))
    monkeypatch.setattr(row_keys, "MAX_IN_MEMORY", 10)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    printed = io.StringIO()

    _, findings = check_rows(surveyed, Console(file=printed, width=60))

    assert findings.num_bad == {}
    said = (
        "row ids were not compared: this takes 1.2 kB in the folder for temporary files ([Errno 2] No such "
        f"file or directory: '{tmp_path}/nowhere'); name another folder with TMPDIR. If rows share an id, "
        "all are generated\n"
    )
    assert printed.getvalue() == (said if ids else "")
